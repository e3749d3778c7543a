"""The source tier: the text of a .cu compiled as C++.

CUDA C++ is nearly C++. What a macro or a function can express stands in cuda_surface.h; three things are rewritten, in
the preprocessed text: ptx.cuh gives way to ptx_stand_in.h, `__shared__` variables become references into the shared
memory of the runtime, and behind each kernel follows what makes it known to the launcher.
"""

import re
from pathlib import Path, PurePath

from . import build

STAND_INS = {"ptx.cuh": "ptx_stand_in.h"}
PREAMBLE = '#include "cuda_surface.h"\n' + "".join(f'#include "{header}"\n' for header in STAND_INS.values())

_LINE = re.compile(r'^[ \t]*#[ \t]*line[ \t]+\d+[ \t]+"([^"]*)"[^\n]*$', re.MULTILINE)
_SHARED = re.compile(r"(?<![\w$])__shared__(?![\w$])")
_KERNEL = re.compile(r"(?<![\w$])__global__(?![\w$])")
_ALIGNMENT = re.compile(r"(?:__align__|alignas|__attribute__\s*\(\s*\(\s*aligned)\s*(?=\()")
_NAME = re.compile(r"[A-Za-z_$][\w$]*")
_SKIPPED = re.compile(
    r'(?<=[\da-fA-F])\'(?=[\da-fA-F])|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|^[ \t]*#[^\n]*', re.MULTILINE
)


def build_module(text: str, options: tuple[str, ...], *, check: bool, ubsan: bool, arch: int) -> Path:
    """The shared object of a text."""
    flags = (build.CHECKED if check else ()) + (build.OVERFLOW if ubsan else ())
    defines = tuple(option for option in options if option.startswith("-D"))

    def cpp() -> str:
        return PREAMBLE + rewritten(preprocessed(without_stand_ins(text), defines, arch))

    return build.shared_object(
        build.digest(text, defines, arch, Path(__file__).read_text()), cpp, flags or build.OPTIMISED
    )


def without_stand_ins(text: str) -> str:
    """The text without the lines that `#line` directives give to a file which has a stand-in."""
    kept, begin, drop = [], 0, False
    for match in _LINE.finditer(text):
        if not drop:
            kept.append(text[begin : match.start()])
        begin, drop = match.start(), PurePath(match[1]).name in STAND_INS
    if not drop:
        kept.append(text[begin:])
    return "".join(kept)


def preprocessed(text: str, defines: tuple[str, ...], arch: int) -> str:
    """Macros expanded and comments gone, but for what is CUDA's own; line markers say what came whence."""
    given = (*defines, f"-D__CUDA_ARCH__={arch}0", "-D__CUDACC__", "-D__CUDACC_RTC__")
    return build.run([build.compiler(), "-std=c++17", "-E", "-undef", *given, "-x", "c++", "-"], text)


def rewritten(text: str) -> str:
    """Preprocessed CUDA C++ as C++."""
    # strings, characters and line markers are of no interest, and may hold braces
    bare = _SKIPPED.sub(lambda match: " " * len(match[0]), text)
    edits = [shared_variable(text, bare, match.start()) for match in _SHARED.finditer(bare)]
    edits += [edit for match in _KERNEL.finditer(bare) if (edit := kernel_record(text, bare, match.end())) is not None]
    for begin, end, new in sorted(edits, reverse=True):
        # what was spread over several lines stays so, or the compiler would count wrong
        text = text[:begin] + new + "\n" * text.count("\n", begin, end) + text[end:]
    return text


def closing(bare: str, begin: int) -> int:
    """The position behind the bracket that closes the one at `begin`."""
    depth = 0
    for position in range(begin, len(bare)):
        if bare[position] in "([{":
            depth += 1
        elif bare[position] in ")]}":
            depth -= 1
            if depth == 0:
                return position + 1
    raise ValueError("a bracket is not closed: " + first_line(bare, begin))


def first_line(text: str, begin: int) -> str:
    return text[begin : begin + 200].strip().split("\n")[0]


def split(bare: str, text: str) -> list[str]:
    """`text` at its outermost commas; those between angle brackets of a type are inside."""
    parts, depth, begin = [], 0, 0
    for position, character in enumerate(bare):
        if character in "([{<":
            depth += 1
        elif character in ")]}>":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[begin:position])
            begin = position + 1
    return [*parts, text[begin:]]


def shared_variable(text: str, bare: str, at: int) -> tuple[int, int, str]:
    """(begin, end, what replaces it) of the declaration around the `__shared__` at a position."""
    begin = max(bare.rfind(character, 0, at) for character in ";{}") + 1
    begin = re.compile(r"\s*").match(bare, begin).end()
    end = bare.index(";", at)
    declaration = text[begin:end]
    if "=" in declaration or "{" in declaration or ":" in declaration.replace("::", ""):
        raise ValueError(f"a __shared__ variable without initialiser or type of its own, please: {declaration.strip()}")
    declaration = _SHARED.sub("", declaration)
    alignments = []
    while (match := _ALIGNMENT.search(declaration)) is not None:
        stop = closing(declaration, match.end())
        alignments.append(declaration[match.end() + 1 : stop - 1])
        if match[0].startswith("__attribute__"):
            stop += len(re.match(r"\s*\)\s*\)", declaration[stop:])[0])
        declaration = declaration[: match.start()] + declaration[stop:]
    words = declaration.split()
    external = "extern" in words
    declaration = " ".join(word for word in words if word not in ("extern", "static"))
    first, *others = split(declaration, declaration)
    match = re.match(r"(?P<type>.*[\s>*&])(?P<name>[A-Za-z_]\w*)\s*(?P<sizes>(?:\[.*\])?)\s*$", first, re.DOTALL)
    if match is None:
        raise ValueError(f"a __shared__ declaration of a form that is not known: {first}")
    kind = match["type"].strip()
    out = one_shared(kind, match["name"], match["sizes"], alignments, external=external)
    for other in others:
        match = re.match(r"\s*(?P<name>[A-Za-z_]\w*)\s*(?P<sizes>(?:\[.*\])?)\s*$", other, re.DOTALL)
        if match is None:
            raise ValueError(f"a __shared__ declaration of a form that is not known: {other}")
        out += " " + one_shared(kind, match["name"], match["sizes"], alignments, external=external)
    return begin, end + 1, " " + out


def one_shared(kind: str, name: str, sizes: str, alignments: list[str], *, external: bool) -> str:
    alignment = alignments[0] if alignments else f"alignof({kind})"
    if external:
        return f"static {kind} (&{name}){sizes} = *({kind} (*){sizes})emulator::dynamic_shared({alignment});"
    array, variable = f"emulator_type_{name}", f"emulator_variable_{name}"
    # The reference is static, as the variable is: a lambda that captures by value must not copy what it refers to.
    return (
        f"typedef {kind} {array}{sizes}; "
        f'static emulator::SharedVariable {variable} = {{sizeof({array}), {alignment}, "{name}", 0, 0}}; '
        f"static {array}& {name} = *({array}*)emulator::shared_address({variable}); "
        f"emulator::shared_enter({variable});"
    )


def kernel_record(text: str, bare: str, at: int) -> tuple[int, int, str] | None:
    """The edit that makes the kernel behind the `__global__` at a position known, or None: it is but declared."""
    bounds, position = "", at
    while True:
        opening = bare.index("(", position)
        word = re.search(r"([A-Za-z_$][\w$]*)\s*$", bare[at:opening])
        stop = closing(bare, opening)
        if word is None:
            raise ValueError(f"a kernel without a name: {first_line(text, at)}")
        if word[1] not in ("__launch_bounds__", "__align__", "__cluster_dims__", "__attribute__"):
            break
        if word[1] == "__launch_bounds__":
            bounds = text[opening + 1 : stop - 1]
        position = stop
    body = re.compile(r"\s*").match(bare, stop).end()
    if bare[body] != "{":
        return None
    before = bare[max(bare.rfind(character, 0, at) for character in ";}") + 1 : at]
    if "extern" not in before.split():  # a template, or a kernel under its C++ name: nobody can ask for it by name
        return None
    end = closing(bare, body)
    return end, end, f" EMULATOR_KERNEL({word[1]}{', ' if bounds.strip() else ''}{' '.join(bounds.split())})"
