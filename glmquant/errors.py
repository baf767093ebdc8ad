"""Every error that glmquant raises on purpose, in one tree.

GlmquantError                 exit code 1
├── UsageError                exit code 2: the command line cannot be meant that way
├── CheckpointError           the source is not a checkpoint that can be read
│   ├── JsonError             a JSON file is not JSON, not an object, or has a key twice
│   ├── HeaderError           a safetensors file is truncated, overlapping, gapped or absurd
│   ├── IndexFileError        the index, the shards and the folder disagree
│   ├── ConfigError           config.json lacks a key or contradicts the tensors
│   ├── ArchitectureError     another model
│   ├── AlreadyQuantizedError the weights are not the BF16 ones
│   ├── PartialError          only a part of the model is there
│   └── TensorSetError        an expected tensor is missing, or one has no rule
├── RecipeError               a recipe file is wrong
├── NoMtpError                an MTP layer was asked for and there is none
├── MismatchError             two checkpoints are not of one model, or hold different tensors
│   └── RotatedError          the body is rotated: no MTP layer of the BF16 release fits it
├── NonFiniteError            NaN or Inf in a weight
├── SourceChangedError        the source is not the one that the run began with
├── TargetError               the target folder cannot be written as asked
│   └── DiskSpaceError        too little room
├── HubError                  a hub cannot be reached, refuses, or gives what it does not list
├── DeployError               checkpoint, machine, version and settings do not go together
├── EngineError               an engine cannot be had, did not load, died, or answered wrongly
├── MeasureError              a suite of measurements cannot be had, failed, or told nothing
└── StorageError              the operating system refused to read or write
"""

from __future__ import annotations


class GlmquantError(Exception):
    """A failure with its place and its remedy.

    Args:
        what: What is wrong, as a clause without a full stop.
        where: The tensor, shard, file or key.
        expected: What should have been there.
        found: What was there.
        hint: What to do or type next.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint

    def fields(self) -> dict[str, str]:
        """The parts of the message that are there, in the order they are read."""
        parts = {
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
        }
        return {key: value for key, value in parts.items() if value is not None}

    def __str__(self) -> str:
        lines = [self.what]
        lines += [
            f"  {key + ':':<10}{text}" for key, text in self.fields().items() if key != "what"
        ]
        return "\n".join(lines)


class UsageError(GlmquantError):
    """The command line cannot be meant that way."""

    exit_code = 2


class CheckpointError(GlmquantError):
    """The source is not a checkpoint that can be read."""


class JsonError(CheckpointError):
    """A JSON file is not JSON, not an object, or has a key twice."""


class HeaderError(CheckpointError):
    """A safetensors file is truncated, overlapping, gapped or absurd."""


class IndexFileError(CheckpointError):
    """The index, the shards and the folder disagree."""


class ConfigError(CheckpointError):
    """config.json lacks a key or contradicts the tensors."""


class ArchitectureError(CheckpointError):
    """The checkpoint is of another model."""


class AlreadyQuantizedError(CheckpointError):
    """The weights are not the BF16 ones."""


class PartialError(CheckpointError):
    """Only a part of the model is there: fetched so, or not all of it yet."""


class TensorSetError(CheckpointError):
    """An expected tensor is missing, or a tensor has no rule."""


class RecipeError(GlmquantError):
    """A recipe file is wrong."""


class NoMtpError(GlmquantError):
    """An MTP layer was asked for and the source has none."""


class MismatchError(GlmquantError):
    """Two checkpoints are not of one model, or hold different tensors."""


class RotatedError(MismatchError):
    """The body is rotated: no MTP layer of the BF16 release fits it."""


class NonFiniteError(GlmquantError):
    """A weight holds NaN or Inf."""


class SourceChangedError(GlmquantError):
    """The source is not the one that the run began with."""


class TargetError(GlmquantError):
    """The target folder cannot be written as asked."""


class DiskSpaceError(TargetError):
    """The disk has too little room."""


class HubError(GlmquantError):
    """A hub cannot be reached, refuses, or gives something else than it lists."""


class DeployError(GlmquantError):
    """A checkpoint, a machine, an engine's version and settings do not go together."""


class EngineError(GlmquantError):
    """An engine cannot be had, did not load the checkpoint, died, or answered wrongly.

    Attributes:
        log: The last lines that it wrote.
    """

    log: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"    | {line}" for line in self.log)])


class MeasureError(GlmquantError):
    """A suite of measurements cannot be had, failed, or told nothing that can be believed."""


class StorageError(GlmquantError):
    """The operating system refused to read or write a file."""
