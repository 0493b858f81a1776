"""Language models: stories260K with weights of 4 bits and with W8A8, as a plain module and as that of transformers.

    python benchmarks/language_models.py --data DIR [--only 'W4 group 32']

DIR holds `stories260k.safetensors` and `stories260k_tokens.npz`. Prints a Markdown table.
"""

import argparse
import math
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import stories
import torch
import transformers
from torch import Tensor, nn

import fxcompress

CALIBRATING = 32  # sequences; the other 224 measure
GROUPS = (32, 64, 128)
HEAD = """\
Mean negative log-likelihood in nats (perplexity) of each next token, on 224 of the 256 sequences that the float model
was made to say; the other 32 calibrate and tune. The weights of the 35 linear layers in the decoder are quantized,
symmetric; with A8 their inputs too (uint8 with a zero point). Float stay the embedding, to which the output layer is
tied (one weight of 512 x 64, 131,072 bytes), the RMS norms and what attention multiplies. A channel has 64 input
weights, 172 in the down projection, so that groups of 64 and 128 differ from a channel there alone. SmoothQuant
(alpha 0.5) leaves the 5 output projections of attention, whose inputs no norm or linear layer makes. `plain` is a
module of torch, captured as a whole; `transformers` is LlamaForCausalLM, captured by islands."""


class Row(NamedTuple):
    """One compressed model: what it is called, its rule and how it is tuned."""

    name: str
    rule: dict[str, Any]
    tune: list[Any]

    @property
    def policy(self) -> dict[str, Any]:
        rule = {"select": {"ops": ["linear"], "names": ["*layers.*"]}} | self.rule
        return {"version": 1, "steps": [{"kind": "quantize", "rules": [rule]}], "tune": self.tune}


def rows() -> Iterator[Row]:
    """Yield the compressed models."""
    token: dict[str, Any] = {"bits": 8, "dynamic": True, "per": "token"}
    eight: dict[str, Any] = {"weight": {"bits": 8}}
    yield Row("W8", eight, [])
    yield Row("W8A8, input per tensor", eight | {"input": {"bits": 8}}, [])
    yield Row("W8A8, input per tensor, SmoothQuant", eight | {"input": {"bits": 8}}, ["smooth_quant"])
    yield Row("W8A8, input dynamic per token", eight | {"input": token}, [])
    yield Row("W8A8, input dynamic per token, SmoothQuant", eight | {"input": token}, ["smooth_quant"])
    layouts: dict[str, dict[str, Any]] = {f"group {size}": {"per": "group", "group_size": size} for size in GROUPS}
    for name, layout in (layouts | {"per channel": {}}).items():
        for observer in ("minmax", "mse"):
            rule = {"weight": {"bits": 4, "observer": observer} | layout}
            said = f"W4 {name}" + (", mse" if observer == "mse" else "")
            yield Row(f"{said}, nearest", rule, [])
            yield Row(f"{said}, GPTQ", rule, ["gptq"])
            yield Row(f"{said}, GPTQ in the order of activations", rule, [{"gptq": {"act_order": True}}])


class Subject(NamedTuple):
    """A model and how it is captured."""

    model: nn.Module
    way: Any
    examples: Any
    data: list[Any]


def subjects(folder: Path, tokens: Tensor) -> list[Subject]:
    """Return the same network in two hands."""
    batches = list(tokens[:, :-1].split(8))
    named = [{"input_ids": ids} for ids in batches]
    return [
        Subject(stories.plain(folder), "symbolic", batches[0], batches),
        Subject(stories.of_transformers(folder), "islands", named[0], named),
    ]


def table(folder: Path, only: str) -> Iterator[str]:
    """Yield the table, row by row."""
    tokens = stories.sampled(folder)
    known, unseen = tokens[:CALIBRATING], tokens[CALIBRATING:]
    hands = subjects(folder, known)
    before = [stories.loss(hand.model, unseen) for hand in hands]
    whole = sum(parameter.nbytes for parameter in hands[0].model.parameters())
    yield "| model | bytes | of float | plain | rise | transformers | rise |\n|---|---:|---:|---:|---:|---:|---:|"
    yield f"| float32 | {whole:,} | 100% | {_told(before[0])} | | {_told(before[1])} | |"
    for row in (row for row in rows() if row.name.startswith(only)):
        cells, sizes = [], []
        for hand, original in zip(hands, before, strict=True):
            small = fxcompress.transform(
                hand.model, row.policy, example_inputs=hand.examples, data=hand.data, capture=hand.way
            )
            found = stories.loss(small, unseen)
            cells += [_told(found), f"{found - original:+.4f}"]
            sizes.append(fxcompress.report(small).record.totals.size)
        yield f"| {row.name} | {sizes[0]:,} | {sizes[0] / whole:.1%} | {' | '.join(cells)} |"


def _told(loss: float) -> str:
    return f"{loss:.4f} ({math.exp(loss):.3f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default="", help="how the names of the rows begin")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "smooth_quant: 5 of 35 ")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{platform.machine()}, 1 thread, Python {platform.python_version()}, {versions}\n\n{HEAD}\n")
    for line in table(arguments.data, arguments.only):
        print(line, flush=True)


if __name__ == "__main__":
    main()
