"""What the versions of vllm-ascend would do with a folder."""
