"""What vLLM CPU 0.30.0 lacks for speculative decoding.

Its ``CPUModelRunner`` puts CPU kernels in place of Triton's, by the names of the kernels; the
functions that launch them kept the old ones (``v1/sample/rejection_sampler.py``,
``v1/spec_decode/utils.py``). Fixed in vLLM 0.32.0.
"""

_LAUNCHERS = {
    "vllm.v1.sample.rejection_sampler": {
        "_rejection_greedy_sample": "rejection_greedy_sample_kernel",
        "_rejection_random_sample": "rejection_random_sample_kernel",
        "_sample_recovered_tokens": "sample_recovered_tokens_kernel",
    },
    "vllm.v1.spec_decode.utils": {
        "_eagle_prepare_inputs_padded": "eagle_prepare_inputs_padded_kernel",
        "_eagle_prepare_next_token_padded": "eagle_prepare_next_token_padded_kernel",
        "_copy_and_expand_eagle_inputs": "copy_and_expand_eagle_inputs_kernel",
    },
}


class _StepKernel:
    """The kernel between two draft tokens, under the names of arguments that its launcher gives."""

    def __getitem__(self, grid):
        return self.func

    @staticmethod
    def func(
        positions,
        block_table,
        block_table_stride,
        seq_lens,
        out_clamped_positions,
        out_slot_mapping,
        block_size,
        max_model_len,
        n_blocks_per_req,
        PAD_ID,  # noqa: N803
        batch_size,
        input_batch_size,
    ):
        from vllm.utils import cpu_triton_utils

        cpu_triton_utils.eagle_step_slot_mapping_metadata_kernel.func(
            positions,
            block_table,
            block_table_stride,
            seq_lens,
            out_clamped_positions,
            out_slot_mapping,
            block_size,
            max_model_len,
            n_blocks_per_req,
            PAD_ID,
        )


class _ExpandKernel:
    """A value of each request for each of its draft tokens: temperature, top-k and top-p.

    The CPU's own calls an argument otherwise, and reads numbers of any kind as int64.
    """

    def __getitem__(self, grid):
        return self.func

    @staticmethod
    def func(output, input, cu_num_tokens, replace_from, replace_to, MAX_NUM_TOKENS):  # noqa: N803
        values = input.masked_fill(input == replace_from, replace_to)
        counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
        output.copy_(values.repeat_interleave(counts))


def mend():
    """Let the launching functions call the CPU kernels."""
    from importlib import import_module

    from vllm.utils import cpu_triton_utils

    for module_name, launchers in _LAUNCHERS.items():
        module = import_module(module_name)
        for launcher, kernel in launchers.items():
            if hasattr(module, launcher):
                getattr(module, launcher).kernel = getattr(cpu_triton_utils, kernel)
    sampler = import_module("vllm.v1.sample.rejection_sampler")
    sampler._expand.kernel = _ExpandKernel()
    steps = import_module("vllm.v1.spec_decode.utils")
    steps._eagle_step_slot_mapping_metadata.kernel = _StepKernel()
