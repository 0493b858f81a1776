"""WHAT: policies as frozen values and as YAML files; never imports torch."""

from fxcompress.policies.amount import Amount, show
from fxcompress.policies.base import Strict
from fxcompress.policies.files import parse, presets, read
from fxcompress.policies.policy import Plan, Policy
from fxcompress.policies.quantizing import Quantize
from fxcompress.policies.reference import Reference
from fxcompress.policies.rules import Rule, Select
from fxcompress.policies.schema import schema
from fxcompress.policies.search import Budget, Search
from fxcompress.policies.step import RuleStep, Step
from fxcompress.policies.steps import Equalize, FoldBatchNorm, Prune, Resolve, SplitChannels, Supernet
from fxcompress.policies.tuning import Tuning
from fxcompress.policies.write import dump, write_text

__all__ = [
    "Amount",
    "Budget",
    "Equalize",
    "FoldBatchNorm",
    "Plan",
    "Policy",
    "Prune",
    "Quantize",
    "Reference",
    "Resolve",
    "Rule",
    "RuleStep",
    "Search",
    "Select",
    "SplitChannels",
    "Step",
    "Strict",
    "Supernet",
    "Tuning",
    "dump",
    "parse",
    "presets",
    "read",
    "schema",
    "show",
    "write_text",
]
