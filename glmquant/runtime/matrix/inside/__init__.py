"""Runs in the Python of a pair of vLLM and vllm-ascend; imports nothing of glmquant."""
