"""Targets: what engines need of quantizers, and the quantizers that are put in for it beside those of the rules."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx

from fxcompress.errors import PolicyError
from fxcompress.graph.edit import is_constant, tensor_under
from fxcompress.graph.operators.calls import operator_of
from fxcompress.passes.placements import Placement, Placements
from fxcompress.policies.quantizing import InputSpec, WeightSpec
from fxcompress.policies.rules import is_open


@dataclass(frozen=True)
class Target:
    """What an engine's integer kernels need; operators are globs on the kinds of the operator table.

    It does what `fuses` names with the layer before it. `returns` run in integers only if their result is quantized,
    `joins` only if all their inputs are (and their result, where they are among `returns`). The inputs of what
    `agrees` names share one scale; what `moves` values around passes on the scale that they came with. `input_bits`
    and `weight_bits` are what its integer kernels take.
    """

    fuses: tuple[str, ...]
    returns: tuple[str, ...]
    joins: tuple[str, ...]
    agrees: tuple[str, ...]
    moves: tuple[str, ...]
    input_bits: tuple[int, ...]
    weight_bits: tuple[int, ...]

    def moves_values(self, node: fx.Node) -> bool:
        """Return whether the engine only moves values around for a node."""
        return _is(_kind(node), self.moves)


_BITS = 8  # of what is added: every engine has kernels for it
_CLAMPS = ("relu", "relu6", "hardtanh")
_MOVES = ("max_pool*", "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous")
_JOINS = ("add", "mul", "cat", "avg_pool*", "adaptive_avg_pool*")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")

TARGETS: Mapping[str, Target] = {
    "onnxruntime": Target(
        fuses=_CLAMPS,
        returns=(*_CONVOLUTIONS, *_JOINS),
        joins=_JOINS,
        agrees=(),
        moves=_MOVES,
        input_bits=tuple(range(2, 9)),  # fewer than 8 are 8 of which some codes are not used
        weight_bits=tuple(range(2, 9)),
    ),
    "openvino": Target(
        fuses=_CLAMPS,
        returns=(*_CONVOLUTIONS, *_JOINS),
        joins=_JOINS,
        agrees=("cat",),
        moves=_MOVES,
        input_bits=(8,),
        weight_bits=(4, 8),
    ),
}


def complete(placed: Placements, gm: fx.GraphModule, name: str) -> None:
    """Add to placements what the integer kernels of a target need, and let tensors share a quantizer where they must.

    What is added has 8 bits, and otherwise the form of the inputs beside it. Raises PolicyError for bits that the
    target's kernels do not take.
    """
    target = TARGETS[name]
    weighted = {call for one in placed.values() if isinstance(one.spec, WeightSpec) for call in _users(one)}
    _refuse_bits(placed, name, weighted)
    ruled = {*placed}
    made: dict[fx.Node, Placement] = {}  # what comes out of integer kernels, with the quantizer of what went in
    for node in gm.graph.nodes:
        kind = _kind(node)
        entering = [tensor_under(gm, edge) for edge in node.all_input_nodes if not is_constant(gm, edge)]
        known = [one for tensor in entering if (one := _static(placed, tensor) or made.get(tensor)) is not None]
        if known and target.moves_values(node):
            made[node] = known[0]
        if known and _is(kind, target.joins):
            for tensor in entering:
                _add(placed, tensor, [node], known[0])
        runs = node in weighted or _is(kind, target.joins)
        if known and runs and all(_reads(placed, tensor, node) for tensor in entering):
            result = _result(node, target)
            made[result] = known[0]
            if _is(kind, target.returns) and all(user.op != "output" for user in result.users):
                _add(placed, result, list(result.users), known[0])
    for node in gm.graph.nodes:
        if target.moves_values(node):
            _share(placed, [tensor_under(gm, node.all_input_nodes[0]), node], ruled)
        if _is(_kind(node), target.agrees):
            _share(placed, [tensor_under(gm, edge) for edge in node.all_input_nodes], ruled)


def _kind(node: fx.Node) -> str:
    operator = operator_of(node)
    return "" if operator is None else operator.kind


def _is(kind: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(kind, glob) for glob in globs)


def _users(placement: Placement) -> list[fx.Node]:
    return [user for users in placement.nodes.values() for user in users]


def _static(placed: Placements, tensor: fx.Node) -> Placement | None:
    """Return the placement of a tensor if it quantizes with a range that is known beforehand."""
    one = placed.get(tensor.name)
    fixed = one is not None and isinstance(one.spec, InputSpec) and not one.spec.dynamic and one.spec.bits != "float"
    return one if fixed else None


def _reads(placed: Placements, tensor: fx.Node, user: fx.Node) -> bool:
    """Return whether a user reads a tensor through such a quantizer."""
    one = _static(placed, tensor)
    return one is not None and user in one.nodes.get(tensor, ())


def _add(placed: Placements, tensor: fx.Node, users: list[fx.Node], like: Placement) -> None:
    """Let users read a tensor through its quantizer, which is put there where the rules have none."""
    new = like._replace(spec=like.spec.replaced(bits=_BITS), nodes={tensor: []})
    placed.setdefault(tensor.name, new)
    there = _static(placed, tensor)
    if there is not None:  # a rule that says otherwise stands
        known = there.nodes.setdefault(tensor, [])
        known.extend(user for user in users if user not in known)


def _share(placed: Placements, tensors: list[fx.Node], ruled: set[str]) -> None:
    """Let tensors share the first one's quantizer, unless rules give them different ones; a rule's form prevails."""
    for tensor in tensors[1:]:
        first, name = _holder(placed, tensors[0]), _holder(placed, tensor)
        one, other = placed.get(first), placed.get(name)
        if one is None or other is None or name == first:
            continue
        if one.spec == other.spec or not {first, name} <= ruled:
            placed[first] = (other if name in ruled else one)._replace(nodes=one.nodes | other.nodes)
            del placed[name]
            ruled |= {first} if name in ruled else set()


def _holder(placed: Placements, tensor: fx.Node) -> str:
    """Return the name under which the quantizer of a tensor is placed: its own, or that of one it shares with."""
    return next((name for name, one in placed.items() if tensor in one.nodes), tensor.name)


def _result(node: fx.Node, target: Target) -> fx.Node:
    """Return the tensor that a layer gives once the target has fused what follows it."""
    while len(node.users) == 1 and _is(_kind(user := next(iter(node.users))), target.fuses):
        node = user
    return node


def _refuse_bits(placed: Placements, name: str, weighted: Collection[fx.Node]) -> None:
    target = TARGETS[name]
    read = {user for one in placed.values() if isinstance(one.spec, InputSpec) for user in _users(one)}
    for one in placed.values():
        of_input = isinstance(one.spec, InputSpec)
        accepted = target.input_bits if of_input else target.weight_bits
        in_integers = any(call in weighted and call in read for call in _users(one))
        for bits in one.spec.bits if is_open(one.spec.bits) else (one.spec.bits,):
            if in_integers and bits not in (*accepted, "float"):
                what = "inputs" if of_input else "weights"
                raise PolicyError(
                    f"{one.at}: {name} runs {what} of {', '.join(map(str, accepted))} bits in integers, not {bits!r} "
                    f"as for {one.layer.name!r}; write one of these, or 'target: none'"
                )
