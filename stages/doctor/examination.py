"""Examine a pipeline by all rules, and put the findings into lines."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from stages.doctor import clip_rules, data_rules, decoder_rules, prior_rules, training_rules
from stages.doctor.evidence import NEEDS, Evidence
from stages.doctor.finding import VERDICTS, Finding, Rule
from unclip.errors import UserError
from unclip.registry import PARTS
from unclip.store.manifest import check_lineage


def of_one_lineage(evidence: Evidence, part: str) -> Finding | None:
    try:
        check_lineage({name: manifest for name, manifest in evidence.manifests.items() if name in _family(part)})
    except UserError as error:
        reason, _, advice = str(error).partition("; ")
        return Finding("mismatched", reason, advice)
    return None


def _family(part: str) -> tuple[str, ...]:
    return (part, *PARTS[part].parents)


LINEAGE = Rule("parts are of one lineage", tuple(PARTS), (), of_one_lineage)
RULES = (
    LINEAGE,
    *data_rules.RULES,
    *training_rules.RULES,
    *clip_rules.RULES,
    *prior_rules.RULES,
    *decoder_rules.RULES,
)


def examine(evidence: Evidence, part: str, rules: tuple[Rule, ...] = RULES) -> dict[str, Finding]:
    """The findings on a part, or on the "data", by the names of their rules, the gravest first."""
    findings = {}
    for rule in rules:
        applies = part in rule.parts and all(evidence.has(need, part) for need in rule.needs)
        if applies and (finding := rule.judge(evidence, part)):
            findings[rule] = finding
    return {rule.name: findings[rule] for rule in sorted(findings, key=lambda rule: gravity(rule, findings[rule]))}


def gravity(rule: Rule, finding: Finding) -> float:
    """The place of a finding in the order from cause to effects, the cause first."""
    if finding.verdict == "undertrained" and rule in training_rules.RULES:
        return VERDICTS.index("collapsed") - 0.5  # a model whose log shows too little training ignores its input yet
    return VERDICTS.index(finding.verdict)


def verdict_of(findings: dict[str, Finding]) -> str:
    """All verdicts of the findings, the gravest first."""
    return ", ".join(dict.fromkeys(finding.verdict for finding in findings.values())) or "healthy"


def describe(folder: Path) -> Iterator[str]:
    """Lines on all parts: a verdict for each, its findings with figures and advice, and what was not looked at."""
    evidence = Evidence(folder)
    missing: set[str] = set()
    for part in ("data", *evidence.manifests):
        rules = [rule for rule in RULES if part in rule.parts]
        missing |= {need for rule in rules for need in rule.needs if not evidence.has(need, part)}
        findings = examine(evidence, part)
        if part == "data" and evidence.data is None:
            continue
        yield f"{part}: {verdict_of(findings)}"
        for name, finding in findings.items():
            yield f"  not so: {name}. {finding.figure[0].upper()}{finding.figure[1:]}"
            yield f"  do: {finding.advice}"
    for part in evidence.begun:
        yield f"{part}: undertrained"
        yield "  not so: the training has saved weights. It began, and ended before its first evaluation"
        yield "  do: give its command again; if the loss was not a number, with a lower learning rate (--train.lr)"
    if missing:
        yield f"not looked at, as it is not here: {', '.join(NEEDS[need] for need in NEEDS if need in missing)}"


def after_training(folder: Path, part: str) -> str:
    """One line at the end of a training, from its log and its manifest alone."""
    quick = tuple(rule for rule in RULES if set(rule.needs) <= {"log"})
    findings = examine(Evidence(folder), part, quick)
    line = f"{part}: {verdict_of(findings)} by its log"
    for finding in list(findings.values())[:1]:
        line += f": {finding.figure}; {finding.advice}"
    return f"{line} (all rules: python -m stages.doctor {shlex.quote(str(folder))})"
