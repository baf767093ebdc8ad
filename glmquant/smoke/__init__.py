"""Does a service answer as it should, and if not, why?"""
