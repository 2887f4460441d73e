"""Label selectors, as Kubernetes defines them (apimachinery, LabelSelector). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One `matchExpressions` entry. `values` is empty for Exists and DoesNotExist."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "In":
                return self.key in labels and labels[self.key] in self.values
            case "NotIn":
                return self.key not in labels or labels[self.key] not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All parts must match; an empty selector matches everything (a caller for whom empty means nothing says so)."""

    match_labels: tuple[tuple[str, str], ...] = ()
    match_expressions: tuple[Requirement, ...] = field(default=())

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in self.match_labels) and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )

    @property
    def keys(self) -> frozenset[str]:
        """The labels on which it depends."""
        return frozenset(key for key, _ in self.match_labels) | {each.key for each in self.match_expressions}

    def only(self, *keys: str) -> LabelSelector:
        """What it says of these labels."""
        return LabelSelector(
            tuple((key, value) for key, value in self.match_labels if key in keys),
            tuple(each for each in self.match_expressions if each.key in keys),
        )

    @property
    def is_empty(self) -> bool:
        return not self.match_labels and not self.match_expressions


EVERYTHING = LabelSelector()


def matches_any(selectors: tuple[LabelSelector, ...], labels: Mapping[str, str]) -> bool:
    """OR of selectors; none at all means all (the legacy ConfigMap's `node-selectors`)."""
    return not selectors or any(selector.matches(labels) for selector in selectors)
