"""A chat model of AISBench, in its own Python: the key from the environment, how replies end.

AISBench writes its configuration into its output, so the key cannot be there; and it keeps no
reason for which a reply ended, so a reply that was cut looks like one that is wrong.
"""

import json
import os
from pathlib import Path

from ais_bench.benchmark.models import VLLMCustomAPIChat

KEY_VARIABLE = "GLMQUANT_SUITE_API_KEY"
REPLIES = Path(__file__).with_name("replies.jsonl")


class Chat(VLLMCustomAPIChat):
    """As AISBench has it; ``settings`` are those of its configuration."""

    def __init__(self, **settings):
        super().__init__(**settings, api_key=os.environ.get(KEY_VARIABLE, ""))

    async def parse_text_response(self, json_content, output):
        """Take what a reply holds, and note how it ended; one that holds nothing is a failure."""
        choices = json_content.get("choices")
        if not choices:
            raise ValueError("a reply without a choice")
        await super().parse_text_response(json_content, output)
        reasons = [choice.get("finish_reason") for choice in choices]
        note = {
            "uuid": output.uuid,
            "finish_reason": reasons[0],
            "output_tokens": output.output_tokens,
        }
        with REPLIES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")
