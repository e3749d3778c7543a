"""PTX to C++: a function for a function, a statement for a statement, a variable for a register.

The rows of the instruction table (ptx_arithmetic.py, ptx_memory.py, ptx_warp.py) write through the Translator: `value`
reads an operand, `assign` writes one, `address` makes a pointer of `[register+offset]`, `run` calls the runtime, `line`
writes anything else.
"""

import re

from . import ptx_arithmetic, ptx_memory, ptx_warp  # noqa: F401  they fill the table
from .ptx_flow import Loops, unique_labels
from .ptx_parse import Function, Instruction, Label, Location, PtxError, PtxModule, Scope, Variable, bits_of, parse
from .ptx_table import find

SPECIAL = {
    f"%{ptx}.{axis}": f"b32(emulator::g.{name}.{axis})"
    for ptx, name in (("tid", "current->index"), ("ntid", "blockDim"), ("ctaid", "blockIdx"), ("nctaid", "gridDim"))
    for axis in "xyz"
} | {
    "%laneid": "b32(emulator::g.current->lane)",
    "%warpid": "b32(emulator::g.current->warp)",
    "%lanemask_eq": "b32(1u << emulator::g.current->lane)",
    "%lanemask_lt": "b32((1u << emulator::g.current->lane) - 1)",
    "%lanemask_le": "b32((2u << emulator::g.current->lane) - 1)",
    "%lanemask_gt": "b32(-(2u << emulator::g.current->lane))",
    "%lanemask_ge": "b32(-(1u << emulator::g.current->lane))",
    "%dynamic_smem_size": "b32(emulator::g.dynamic_shared_bytes)",
    "WARP_SZ": "b32(32)",
}
FLOATS = {"f16", "bf16", "f32", "f64", "f16x2", "bf16x2"}
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")
_ADDRESS = re.compile(r"\[\s*([%$\w]+)\s*(?:([+-])\s*(-?\w+)\s*)?\]")


def is_integer(type_: str) -> bool:
    return type_[0] in "bsu" and not type_.startswith("bf")


def same_storage(stored: str, type_: str) -> bool:
    """Whether a C++ variable of one type is a value of the other as it stands; integers are kept unsigned."""
    if is_integer(stored) and is_integer(type_):
        return type_[0] in "bu" and bits_of(stored) == bits_of(type_)
    return stored == type_


def cpp_name(name: str) -> str:
    return re.sub(r"\W", "_", name)


def source_name(name: str) -> str:
    """The name in the source of a variable of a function: _ZZ6kernelE4tile is tile."""
    local = re.fullmatch(r"_ZZ.*E\d+([A-Za-z_]\w*)", name)
    return local[1] if local else name


class Sites:
    """The source lines that faults and the traffic report name, as a table in the C++."""

    def __init__(self):
        self.numbers: dict[tuple[str, int], int] = {}

    def number(self, where: Location) -> int:
        (file, line), inner = where.line, where.innermost
        # the runtime ends it with a colon and the line
        text = file if inner == (file, line) else f"{inner[0]}:{inner[1]} in {file}"
        return self.numbers.setdefault((text, line), len(self.numbers))

    def definition(self) -> str:
        rows = ", ".join(f'{{"{text}", {line}}}' for text, line in self.numbers)
        return f"static const emulator::Site sites[] = {{{rows or '{}'}}};"


class Globals:
    """The variables of a module: where they lie, and the address of each as C++."""

    def __init__(self, variables: list[Variable]):
        self.addresses: dict[str, str] = {}
        self.definitions: list[str] = []
        for variable in variables:
            self.add(variable)

    def add(self, variable: Variable) -> None:
        name = f"v_{cpp_name(variable.name)}"
        if variable.space == "shared" and variable.count == 0:
            self.addresses[variable.name] = (
                f"u64((char*)emulator::dynamic_shared({variable.align}) - emulator::g.shared)"
            )
        elif variable.space == "shared":
            self.addresses[variable.name] = f"address_of({name})"
            record = f'{{{variable.bytes}, {variable.align}, "{source_name(variable.name)}", 0, 0}}'
            self.definitions.append(f"static Shared {name} = {{{record}, nullptr}};")
        else:
            self.addresses[variable.name] = f"u64({name})"
            values = ", ".join(self.initial(value) for value in variable.values)
            storage = f"alignas({variable.align}) static u{bits_of(variable.type)}"
            self.definitions.append(f"{storage} {name}[{variable.count or 1}] = {{{values}}};")

    def initial(self, value: str) -> str:
        if value[:2] in {"0f", "0F", "0d", "0D"}:
            return f"0x{value[2:]}"
        name = value[8:-1] if value.startswith("generic(") else value
        return name if _INTEGER.fullmatch(name) else self.address(name)

    def address(self, text: str) -> str:
        """Of `name` or `name+offset`."""
        name, plus, offset = text.partition("+")
        if name not in self.addresses:
            raise PtxError(f"operand {text}")
        return f"({self.addresses[name]} + {offset})" if plus else self.addresses[name]


class Translator:
    """One function."""

    def __init__(self, function: Function, variables: Globals, sites: Sites, functions: frozenset[str]):
        self.function, self.globals, self.sites, self.functions = function, variables, sites, functions
        self.scopes: list[dict[str, Variable | str]] = [{}]
        self.types: dict[str, str] = {}  # of the C++ variables
        self.declarations: list[str] = []
        self.code: list[str] = []
        self.parameters = {p.name: f"arguments[{i}]" for i, p in enumerate(function.params)}
        self.parameters |= {p.name: f"results[{i}]" for i, p in enumerate(function.results)}
        self.count = 0
        self.block, self.instruction, self.place_number = 0, None, 0
        self.body = unique_labels(function.body)
        self.loops = Loops(self.body)

    # ---- what the rows of the table call -----------------------------------------------------------------------------
    def value(self, operand: str, type_: str) -> str:
        """C++ of the value of a source operand, of the C++ type that is called as the PTX type."""
        if type_ == "pred":
            if _INTEGER.fullmatch(operand):
                return "true" if int(operand, 0) else "false"
            return f"(!{self.register(operand[1:])})" if operand.startswith("!") else self.register(operand)
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", operand):
            return f"as<{type_}>({'b32' if operand[1] in 'fF' else 'b64'}(0x{operand[2:]}))"
        if _INTEGER.fullmatch(operand):
            return self.literal(operand, type_)
        if re.fullmatch(r"-?\d+\.\d*(?:[eE][+-]?\d+)?", operand):
            return f"{type_}({operand})"
        raw = self.raw(operand)
        stored = self.types.get(raw, "u64")
        if same_storage(stored, type_):
            return raw
        return f"{type_}({raw})" if is_integer(stored) and is_integer(type_) else f"as<{type_}>({raw})"

    def assign(self, operand: str, type_: str, value: str) -> None:
        """Writes a value of that type into a destination operand."""
        if operand == "_":
            self.line(f"(void)({value});")
        elif type_ == "pred":
            self.line(f"{self.register(operand)} = {value};")
        else:
            register = self.register(operand)
            stored = self.types[register]
            if same_storage(stored, type_):
                self.line(f"{register} = {value};")
            elif is_integer(stored) and is_integer(type_):  # sign or zero extension
                self.line(f"{register} = {type_}({value});")
            else:
                self.line(f"set({register}, {type_}({value}));")

    def assign_all(self, targets: list[tuple[str, str, str]]) -> None:
        """Several at once: all values are worked out before the first is written, as one may be read by the next."""
        if len(targets) > 1:
            targets = [(operand, type_, self.temporary(type_, value)) for operand, type_, value in targets]
        for operand, type_, value in targets:
            self.assign(operand, type_, value)

    def temporary(self, type_: str, value: str) -> str:
        self.count += 1
        self.line(f"{type_} t{self.count} = {value};")
        return f"t{self.count}"

    def address(self, operand: str, space: str) -> str:
        """A pointer of the host for `[base+offset]`; for a parameter of a function too."""
        match = _ADDRESS.fullmatch(operand)
        if match is None:
            raise PtxError(f"address {operand}")
        base, sign, offset = match.groups()
        plus = f" {sign} ({offset})" if offset else ""
        if space == "param":  # of this function, or of a call in it
            return f"((char*){self.parameters.get(base) or self.lookup(base)}{plus})"
        if space == "shared":
            return f"((char*)emulator::shared_pointer({self.shared_number(operand)}))"
        return f"((char*)u64({self.raw(base)}){plus})"

    def shared_number(self, operand: str) -> str:
        """The 32-bit shared memory address of `[base+offset]`."""
        match = _ADDRESS.fullmatch(operand)
        if match is None:
            raise PtxError(f"address {operand}")
        base, sign, offset = match.groups()
        return f"u32({self.raw(base)}{f' {sign} ({offset})' if offset else ''})"

    def run(self, name: str, *arguments: str) -> None:
        """Calls a function of runtime.h that takes the site last."""
        self.line(f"emulator::{name}({', '.join((*arguments, self.site))});")

    def line(self, text: str) -> None:
        self.code.append(text)

    @property
    def site(self) -> str:
        """C++ of the emulator::Site of this instruction."""
        return f"sites[{self.sites.number(self.instruction.where)}]"

    @property
    def place(self) -> str:
        """C++ of the ptx::Place of this memory access."""
        passes = ", ".join(f"pass{head}" for head in self.loops.around(self.block))
        return f"Place{{{self.site}, {self.place_number}, passes({passes})}}"

    def jump(self, label: str) -> None:
        self.line(f"{self.loops.step(self.block, self.loops.labelled[label])}goto {cpp_name(label)};")

    def call(self, name: str, arguments: tuple[str, ...], results: tuple[str, ...]) -> None:
        if name not in self.functions:
            raise PtxError(f"{self.instruction}: there is no function {name} in this text")
        gave, got = (", ".join([*(str(self.lookup(x)) for x in names), "nullptr"]) for names in (arguments, results))
        self.count += 1  # as for temporaries
        self.line(f"void *gave[] = {{{gave}}}, *got[] = {{{got}}};")
        self.line(f"f_{cpp_name(name)}(gave, got);")

    # ---- operands ----------------------------------------------------------------------------------------------------
    @staticmethod
    def literal(text: str, type_: str) -> str:
        number = int(text.rstrip("U"), 8 if re.fullmatch(r"-?0[0-7]+U?", text) else 0)
        if type_ in FLOATS:
            raise PtxError(f"the integer {text} where a {type_} is wanted")
        return f"{type_}({number & (1 << 64) - 1}ull)" if abs(number) >= 1 << 31 else f"{type_}({number})"

    def raw(self, operand: str) -> str:
        """C++ of the bits of a register, special register, literal, or of the address of a variable."""
        if operand in SPECIAL:
            return SPECIAL[operand]
        if operand in {"%clock", "%clock64", "%globaltimer"}:
            raise PtxError(f"{operand}: there is no time in the emulator")
        if _INTEGER.fullmatch(operand):
            return self.literal(operand, "u64")
        found = self.lookup(operand)
        if isinstance(found, str):
            return found if found in self.types else f"u64({found})"
        if operand in self.parameters:
            return f"u64({self.parameters[operand]})"
        return self.globals.address(operand)

    def register(self, name: str) -> str:
        found = self.lookup(name)
        if found not in self.types:
            raise PtxError(f"{self.instruction}: no register {name}")
        return found

    def lookup(self, name: str) -> str | None:
        """The C++ variable of a register, .local or .param variable, the innermost of that name."""
        stem = name.rstrip("0123456789")
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
            family = scope.get(f"{stem}<>")
            if family is not None and stem != name:
                scope[name] = self.declare(name, family)
                return scope[name]
        return None

    def declare(self, name: str, variable: Variable) -> str:
        cpp = f"r_{cpp_name(name.lstrip('%'))}"
        if cpp in self.types:
            self.count += 1
            cpp += f"_{self.count}"
        # not 0, so that a register that is read before it is written shows
        storage = variable.type if variable.type in {"pred", "f32", "f64"} else f"b{max(16, bits_of(variable.type))}"
        poison = {"pred": "true", "f32": "NAN", "f64": "NAN"}.get(storage, f"{storage}(-1)")
        self.declarations.append(f"{storage} {cpp} = {poison};")
        self.types[cpp] = storage
        return cpp

    def declare_variable(self, variable: Variable) -> None:
        if variable.space == "reg":
            key = f"{variable.name}<>" if variable.numbered else variable.name
            self.scopes[-1][key] = variable if variable.numbered else self.declare(variable.name, variable)
        elif variable.space in {"local", "param"}:
            self.count += 1
            cpp = f"{variable.space}{self.count}"
            self.declarations.append(f"alignas({variable.align}) u8 {cpp}[{variable.bytes}];")
            self.declarations.append(f"memset({cpp}, 0xff, sizeof {cpp});")
            self.scopes[-1][variable.name] = cpp
        elif variable.name not in self.globals.addresses:
            self.globals.add(variable)

    # ---- statements --------------------------------------------------------------------------------------------------
    def translate(self) -> str:
        """The C++ of the function."""
        for number, block in enumerate(self.loops.blocks):
            self.block = number
            for statement in self.body[block.first : block.last]:
                self.statement(statement)
            if number + 1 in block.next and (step := self.loops.step(number, number + 1)):
                self.line(step)
        counters = "".join(f" pass{head} = 0," for head in self.loops.members).rstrip(",")
        declarations = [*self.declarations, f"u64{counters};"] if counters else self.declarations
        lines = "\n  ".join([*declarations, *self.code])
        return f"{self.prototype(self.function)} {{\n  {lines}\n  return;\n}}\n"

    @staticmethod
    def prototype(function: Function) -> str:
        return f"static void f_{cpp_name(function.name)}(void** arguments, void** results)"

    def statement(self, statement: object) -> None:
        if isinstance(statement, Variable):
            self.declare_variable(statement)
        elif isinstance(statement, Scope):
            self.scopes.append({}) if statement.opens else self.scopes.pop()
        elif isinstance(statement, Label):
            self.line(f"{cpp_name(statement.name)}:;")
        elif isinstance(statement, Instruction):
            self.instruction = statement
            self.place_number += 1
            handler, match = find(statement)
            begin, before = len(self.code), self.count
            handler(self, statement, match)
            # a goto may not jump past the declaration of a temporary: it goes into braces
            if statement.guard or self.count != before:
                self.code.insert(begin, f"if ({self.value(statement.guard, 'pred')}) {{" if statement.guard else "{")
                self.line("}")


def signature(function: Function) -> str:
    """The parameters as tokens of the launcher: PTX tells no pointer from a 64-bit integer, no int from an unsigned."""

    def token(parameter: Variable) -> str:
        if parameter.count is not None:
            return f"s{parameter.bytes}"
        return f"{'f' if parameter.type in FLOATS else '?'}{parameter.bytes}"

    return " ".join(token(parameter) for parameter in function.params)


def translate(ptx: str) -> str:
    """A PTX text as the C++ of a module of the emulator. Raises PtxError, naming the instruction it does not know."""
    module: PtxModule = parse(ptx)
    variables, sites = Globals(module.variables), Sites()
    names = frozenset(function.name for function in module.functions)
    bodies, records = [], []
    for function in module.functions:
        bodies.append(Translator(function, variables, sites, names).translate())
        if function.is_kernel:
            name = cpp_name(function.name)
            bodies.append(f"static void entry_{name}(void** arguments) {{ f_{name}(arguments, nullptr); }}\n")
            records.append(
                f'EMULATOR_KERNEL_RECORD({name}, ptx::entry_{name}, "{signature(function)}", {function.max_threads})'
            )
    prototypes = [f"{Translator.prototype(function)};" for function in module.functions]
    return "\n".join(
        [
            '#include "ptx_warp.h"',
            "namespace ptx {",
            "static bool carry;",
            sites.definition(),
            *variables.definitions,
            *prototypes,
            *bodies,
            "}  // namespace ptx",
            *records,
        ]
    )
