"""The machine code of ``loops``: compiled once per machine, then loaded in milliseconds.

numba takes half a second to import, more than it takes to quantize a gigabyte; what it compiled is
an object file that llvmlite alone can load. It is kept in the user's cache folder under a name that
says for which source, llvmlite and processor it was made, behind a digest of its bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import llvmlite
import xxhash
from llvmlite import binding

from glmquant.usercache import read_cached, write_cached

_POINTER: Final = ctypes.c_void_p
_QUANTIZE: Final = ctypes.CFUNCTYPE(
    ctypes.c_int64, _POINTER, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, *[_POINTER] * 7
)
_MAGNITUDE: Final = ctypes.CFUNCTYPE(ctypes.c_int64, _POINTER, ctypes.c_int64, ctypes.c_int64)


class Kernels(NamedTuple):
    """The compiled functions; each gives the interpreter's lock away while it runs.

    Attributes:
        quantize: Bits of a word → ``quantize_16`` or ``quantize_32`` of ``loops``.
        magnitude: Bits of a word → ``magnitude_16`` or ``magnitude_32``.
        engines: Own the code.
    """

    quantize: dict[int, Callable[..., int]]
    magnitude: dict[int, Callable[..., int]]
    engines: tuple[Any, ...]


@cache
def kernels() -> Kernels:
    """The functions, from the user's cache or compiled now."""
    packed = _kept()
    if packed is None:
        _compile_elsewhere()
        packed = _kept() or _compile()  # where nothing can be kept, in each process
    return _load(packed)


def _kept() -> bytes | None:
    """What lies in the user's cache, or None where there is none, or a torn one."""
    kept = read_cached(_cache_name()) or b""
    digest, packed = kept[:16], kept[16:]
    return packed if packed and xxhash.xxh3_128(packed).digest() == digest else None


def _compile_elsewhere() -> None:
    """Compile into the user's cache in a process of its own: the compiler takes 200 MB."""
    words = [sys.executable, "-c", f"from {__name__} import keep; keep()"]
    with suppress(OSError):  # then it is compiled here
        subprocess.run(words, capture_output=True, check=False)


def keep() -> None:
    """Compile the kernels and put them into the user's cache."""
    packed = _compile()
    write_cached(_cache_name(), xxhash.xxh3_128(packed).digest() + packed)


def _cache_name() -> str:
    made_for = hashlib.sha256(repr((llvmlite.__version__, *_processor())).encode())
    for module in ("definition.py", "loops.py", "machine_code.py", "units.py"):
        made_for.update(Path(__file__).with_name(module).read_bytes())
    return f"kernels-{made_for.hexdigest()[:24]}"


def _processor() -> tuple[str, str, str]:
    features = binding.get_host_cpu_features().flatten()
    return binding.get_process_triple(), binding.get_host_cpu_name(), features


def _target_machine() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    triple, cpu, features = _processor()
    target = binding.Target.from_triple(triple)
    return target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


def _compile() -> bytes:
    """The object files of ``loops``, and the names that they call but do not define."""
    from glmquant.kernels.loops import intermediate_code

    machine = _target_machine()
    outside: set[str] = set()
    codes: dict[str, bytes] = {}
    for name, text in intermediate_code().items():
        module = binding.parse_assembly(text)
        codes[name] = machine.emit_object(module)
        outside |= {function.name for function in module.functions if function.is_declaration}
    head = {
        "outside": sorted(name for name in outside if not name.startswith("llvm.")),
        "nbytes": {name: len(code) for name, code in codes.items()},
    }
    return json.dumps(head).encode() + b"\n" + b"".join(codes.values())


def _load(packed: bytes) -> Kernels:
    head, _, rest = packed.partition(b"\n")
    fields = json.loads(head)
    _provide(fields["outside"])
    engines, address, begin = [], {}, 0
    for name, nbytes in fields["nbytes"].items():
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _target_machine())
        code = binding.ObjectFileRef.from_data(rest[begin : begin + nbytes])
        engine.add_object_file(code)
        engine.finalize_object()
        address[name] = engine.get_function_address(name)
        engines.append(engine)
        begin += nbytes
    return Kernels(
        {size: _QUANTIZE(address[f"quantize_{size}"]) for size in (16, 32)},
        {size: _MAGNITUDE(address[f"magnitude_{size}"]) for size in (16, 32)},
        tuple(engines),
    )


def _provide(names: Iterable[str]) -> None:
    """Give an address to what only numba would define: the ways out of errors that cannot be."""
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for name in names:
        if binding.address_of_symbol(name) is None:
            binding.add_symbol(name, abort)
