"""The engine beside its peers: the same work, in the same run, on the same cores, in turns.

``python bench/compare.py --threads 2 --limit-isa avx2 --cases unet-512,vae-512``

The peers are installed from PyPI: stable-diffusion.cpp through ``stable-diffusion-cpp-python``, diffusers on torch, and
OpenVINO with nncf; docs/benchmarks.md tells how to build the first at its best. A peer that is not installed is left
out. Every peer runs with the settings that a trial finds fastest for it. Every turn has a process of its own; the order
is turned around from round to round. Results are written after every turn, and a run that was stopped goes on where it
was: turns that are in the file are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import comparison
import contenders
import measuring
import step
from cases import Case
from contenders import ENGINE, Contender, Field

Report = dict[str, Any]
ORDER = (ENGINE, cases.SDCPP, cases.TORCH, cases.OPENVINO)


class Results:
    """What was measured so far, in a file."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.content: Report = {"trials": {}, "cases": {}}
        if path.is_file():
            self.content = json.loads(path.read_text(encoding="utf-8"))
            found = {key: self.content.get(key) for key in settings}
            if found != settings:
                raise SystemExit(f"{path} holds another run, {found}; this one is {settings}")
        self.content |= settings

    def restore(self, case: Case, contender: Contender) -> None:
        """Give a contender the reports that it has in the file."""
        for kept in self.content["cases"].get(case.name, {}).get("contenders", []):
            same = (kept["name"], kept["weight_type"]) == (contender.name, contender.weight_type)
            if same and kept["settings"] == contender.settings:
                contender.reports, contender.failure = kept["rounds"], kept["failure"]

    def keep(self, case: Case, found: Sequence[Contender]) -> None:
        """Write what the contenders of a case have now; those of an earlier run that are not in this one stay."""
        present = {c.key for c in found}
        earlier = self.content["cases"].get(case.name, {}).get("contenders", [])
        entries = [c for c in earlier if f"{c['name']} {c['weight_type']}" not in present]
        entries += [
            {
                "name": c.name,
                "weight_type": c.weight_type,
                "settings": c.settings,
                "failure": c.failure,
                "rounds": c.reports,
            }
            for c in found
        ]
        entries.sort(key=lambda entry: ORDER.index(entry["name"]))
        self.content["cases"][case.name] = {"title": case.title, "contenders": entries}
        self.write()

    def write(self) -> None:
        """Write the file; complete or not at all."""
        unfinished = self.path.with_name(self.path.name + ".part")
        measuring.write_json(unfinished, self.content)
        unfinished.replace(self.path)


def run(
    case: Case, field: Field, facts: Mapping[str, Report], results: Results, rounds: int
) -> None:
    """All turns of a case that the results do not hold yet."""
    found = field.of(case, facts)
    for contender in found:
        results.restore(case, contender)
    for turn in range(min(rounds, case.rounds)):
        # Every other round backwards, so that nobody always runs on a processor warmed by another.
        for contender in found if turn % 2 == 0 else reversed(found):
            if len(contender.reports) > turn or contender.failure:
                continue
            try:
                contender.reports.append(contender.run())
                said = f"{contender.median('median'):.2f} s"
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                contender.failure = said = str(error).strip().splitlines()[-1][:300]
            print(f"  {case.name} round {turn + 1}: {contender.key}: {said}", flush=True)
            results.content["trials"] = field.trials
            results.keep(case, found)
    print(comparison.table(case, found), flush=True)


def check_settings(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Case]:
    """The cases that are wanted, in their own order."""
    known = [case.name for case in cases.CASES]
    wanted = arguments.cases.split(",") if arguments.cases else known
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"no such cases: {', '.join(unknown)}; there are {', '.join(known)}")
    found = [cases.by_name(name) for name in wanted]
    if not arguments.weight_types:
        return found
    kept = set(arguments.weight_types.split(","))
    narrowed = [
        replace(c, weight_types=tuple(t for t in c.weight_types if t in kept)) for c in found
    ]
    return [case for case in narrowed if case.weight_types]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="", help="with commas; all by default")
    parser.add_argument("--weight-types", default="", help="of the cases' own only these")
    parser.add_argument("--threads", type=int, default=0, help="0: one per physical core")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of everybody; long cases fewer"
    )
    parser.add_argument(
        "--peers",
        default=",".join((cases.SDCPP, cases.TORCH, cases.OPENVINO)),
        help="which to run, with commas",
    )
    parser.add_argument(
        "--arithmetic", default="standard", choices=["precise", "standard", "fast"], help="ours"
    )
    parser.add_argument(
        "--limit-isa", default="", choices=["", *contenders.LIMITS], help="for everybody"
    )
    parser.add_argument(
        "--sdcpp-library",
        action="append",
        default=[],
        metavar="FILE",
        help="another build of stable-diffusion.cpp's library to try besides the installed one",
    )
    parser.add_argument("--json", type=Path, help="default: results/compare-*.json in this folder")
    parser.add_argument(
        "--report", action="store_true", help="only print the results as a table for the docs"
    )
    arguments = parser.parse_args()
    wanted = check_settings(arguments, parser)
    threads = arguments.threads or step.default_threads()
    machine, before = measuring.machine(), measuring.load_average()
    name = f"compare-{measuring.slug(machine)}-{threads}-threads"
    name += f"-{arguments.limit_isa}" * bool(arguments.limit_isa)
    name += f"-{arguments.arithmetic}" * (arguments.arithmetic != "standard")
    path = arguments.json or measuring.HERE / "results" / f"{name}.json"
    if arguments.report:
        print(comparison.document(json.loads(path.read_text(encoding="utf-8"))))
        return
    settings = {"machine": machine, "threads": threads, "limit_isa": arguments.limit_isa}
    results = Results(path, settings)
    results.content["cores"] = measuring.bind_to_cores(threads)
    results.content.setdefault("load_average_before", before)
    os.environ.pop("SDENGINE_THREADS", None)
    variables = contenders.limited(arguments.limit_isa)
    field = Field(threads, variables, arguments.sdcpp_library, results.content["trials"])
    field.arithmetic = arguments.arithmetic
    facts = field.facts([ENGINE, *arguments.peers.split(",")])
    results.content["versions"] = facts
    for case in wanted:
        run(case, field, facts, results, arguments.rounds)
    results.content["load_average_after"] = measuring.load_average()
    results.write()


if __name__ == "__main__":
    main()
