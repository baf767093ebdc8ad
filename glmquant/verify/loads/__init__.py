"""What the unmodified loaders of vllm-ascend's versions do with a checkpoint, here on the CPU.

``check`` runs them, on the folder itself or on the copy of ``reduced``; ``explain`` says what an
engine's message means, ``matrix`` holds what came of it.
"""
