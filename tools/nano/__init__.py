"""GLM-4-nano: the small trained model that ``glmquant demo`` and the tests quantize.

One flow: standard library sources (``text``) → byte-level BPE (``tokenizer``) → token windows
(``windows``) → network (``network``) → training (``training``) → checkpoint folder (``export``) →
measured figures (``evaluate``) → model card and digests (``card``).
"""
