"""Give a quantized checkpoint what it lacks of its source: MTP layer and router biases.

One flow: ``donor`` and ``recipient`` are read by their headers, ``match`` and ``judge`` hold them
against each other, ``plan`` decides every file, ``prospect`` asks whether it can be. ``shards``
writes weights; then ``inplace`` puts small files into their places, or ``siblings`` builds a folder
that ``swap`` puts into the old one's place. ``run`` is what the command line calls.
"""
