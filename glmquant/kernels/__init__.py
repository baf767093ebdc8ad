"""int8 arithmetic: ``definition`` says in NumPy what is right, ``fast`` does the same in numba.

Bit-identical, error sums included: those are integers, whose order of addition does not matter.
"""
