"""What a checkpoint did when it ran, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from glmquant.verify.behaviour.behaviour import Behaviour, Figures


def behaviour_rows(behaviour: Behaviour) -> list[tuple[str, str]]:
    """Each thing that was measured, in words: label and text."""
    from glmquant.verify.behaviour.acceptance import allowed_shift, rate_text
    from glmquant.verify.behaviour.judge import bounds

    rows = [("engine", behaviour.name)]
    tokens = behaviour.prompts * behaviour.max_tokens
    asked = f"{tokens:,} tokens, greedy, to {behaviour.prompts} prompts, {behaviour.material}"
    if behaviour.partings is not None:
        same = behaviour.prompts - len(behaviour.partings)
        asked += f"; with MTP = without on {same} of {behaviour.prompts}"
    rows.append(("answers", asked))
    drafting, source = behaviour.drafting, behaviour.source_drafting
    if drafting is not None:
        rows.append(("acceptance", rate_text(drafting)))
        if source is not None:
            bound = allowed_shift(drafting, source)
            rows.append(("  the source's", f"{rate_text(source)}; allowed: ± {bound:.3f}"))
    if behaviour.divergence is not None:
        mean, median, same_top = bounds(behaviour.floor)
        found = behaviour.divergence
        part = f", over the {behaviour.top} likeliest of each" if behaviour.top else ""
        rows += [
            ("distributions", f"{_figures(found)}; {found.tokens:,} tokens of text{part}"),
            ("  allowed", f"KL {mean:.1e} mean, {median:.1e} median; top-1 {same_top:.4f}"),
        ]
        if behaviour.floor is not None:
            rows.append(("  BF16 noise", _figures(behaviour.floor)))
    elif behaviour.perplexity is not None:
        rows.append(("perplexity", f"{behaviour.perplexity:,.3f} of the text"))
    return rows


def echo_behaviour(behaviour: Behaviour) -> None:
    """The same as a table on stdout."""
    from glmquant.cli.summary import echo_table
    from glmquant.survey import printable

    echo_table(behaviour_rows(behaviour), left=2)
    for note in behaviour.notes:
        click.echo(f"note: {printable(note, 500)}")


def _figures(found: Figures) -> str:
    return (
        f"KL {found.kl_mean:.1e} mean, {found.kl_median:.1e} median, {found.kl_tail:.1e} at "
        f"99.9 %; top-1 {found.same_top:.4f}; perplexity {found.perplexity:.3f}, "
        f"x {found.perplexity_ratio:.4f}"
    )
