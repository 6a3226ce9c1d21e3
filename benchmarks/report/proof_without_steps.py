"""Proof: what takes no step at the request, on more passages than the arms with steps have."""

from __future__ import annotations

from benchmarks.report.formatting import (
    Result,
    interval_cell,
    seconds_cell,
    share_cell,
    titled_table,
)


def without_steps(result: Result) -> list[str]:
    """A table by domain and arm; nothing if it was not measured."""
    if not (found := result.get("without_steps")):
        return []
    rows = result["parts"]["arms without steps"]["rows"]
    domains, by_arm, auto = found["by_domain"], found["by_arm"], found["auto"]
    share, known = share_cell(auto["gain_share"]), share_cell(auto["gain_share_of_hindsight"])
    names = [name for name in next(iter(domains.values()))["arms"] if name != "base"]
    documents = sum(each["documents"] for each in domains.values())
    return titled_table(
        "Without a step",
        f"What takes no step at the request, and what `auto` does, on {len(rows)} passages of "
        f"{documents} documents of the same domains: bits per byte in per cent of the "
        "base model's, with 90 % intervals over documents. `auto` has "
        f"{share} of the gain of the best of these on average ({auto['best_arm']}), and {known} of "
        "that of the best of each passage, which nobody knows before.",
        ["domain", "passages", "documents", *names],
        [
            *(
                [
                    domain,
                    str(each["passages"]),
                    str(each["documents"]),
                    *(interval_cell(each["arms"][name]) for name in names),
                ]
                for domain, each in domains.items()
            ),
            [
                "**all**",
                str(len(rows)),
                str(documents),
                *(interval_cell(by_arm[name]["percent_of_base"]) for name in names),
            ],
            [
                "seconds to the first token",
                "",
                "",
                *(seconds_cell(by_arm[name]["first_token"]) for name in names),
            ],
        ],
    )
