"""WHAT: policies as frozen values and as YAML files; never imports torch."""

from fxcompress.policies.amount import Amount, show
from fxcompress.policies.base import Strict
from fxcompress.policies.files import parse, presets, read
from fxcompress.policies.policy import Budget, Plan, Policy, Search
from fxcompress.policies.reference import Reference
from fxcompress.policies.rules import Rule, Select
from fxcompress.policies.steps import FoldBatchNorm, Prune, Quantize, Resolve, RuleStep, Step, Supernet
from fxcompress.policies.write import dump, write_text

__all__ = [
    "Amount",
    "Budget",
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
    "Step",
    "Strict",
    "Supernet",
    "dump",
    "parse",
    "presets",
    "read",
    "show",
    "write_text",
]
