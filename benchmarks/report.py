"""Writes the tables of docs/benchmarks.md from benchmarks/results/*.json, so that the page never disagrees with the
results. `python benchmarks/report.py --check` only says whether it does."""

import sys

import common

PAGE = common.ROOT / "docs" / "benchmarks.md"
FILES = ["train", "axes", "checkpoint", "recovery", "stacks", "inputs", "scale", "simulate", "serve", "gpu", "plan", "finetune"]


def marks(name):
    return f"<!-- figures of {name}.json: written by benchmarks/report.py -->", f"<!-- end of {name}.json -->"


def table(entries):
    lines = [
        "| figure | value | min–max | ours | theirs | goal | peer |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for e in entries:
        low_high = f"{e['min']:.3g}–{e['max']:.3g}" if "min" in e else ""
        goal = f"{e['goal']}: {'reached' if e['reached'] else '**not reached**'}" if "goal" in e else ""
        cells = [f"`{e['name']}`", f"{e['value']:.3g}", low_high, e.get("ours", ""), e.get("theirs", ""), goal, e["peer"]]
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return lines


def tables(entries):
    """One table, or one for each kind of CPU where a figure was measured on several."""
    if len({e["name"] for e in entries}) == len(entries):
        return [*table(entries), "", *provenance(entries)]
    body = []
    for kind in sorted({common.cpu_kind(e) for e in entries}):
        own = [e for e in entries if common.cpu_kind(e) == kind]
        wide = next((e["machine"]["vectors"] for e in own if "vectors" in e["machine"]), None)
        body += [f"**{kind}{f', {wide}' if wide else ''}**", "", *table(own), "", *provenance(own), ""]
    return body[:-1]


def provenance(entries):
    """Where the figures come from, one line for each different origin."""
    lines = []
    for e in entries:
        v, m = e["versions"], e["machine"]
        line = (
            f"- herd {v['herd']}, libtorch {v['libtorch']}, transformers {v['transformers']}, Python {v['python']}, "
            f"{v['mpi']}; {m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Linux {m['kernel']}; "
            f"{e['date'][:10]}; `{e['command']}`"
        )
        if line not in lines:
            lines.append(line)
    return lines


def render(page):
    """The page with every table as the results files have it."""
    for name in FILES:
        entries = common.read_results(common.RESULTS.with_name(f"{name}.json"))
        body = tables(entries) if entries else ["No figures yet."]
        page = common.between(page, *marks(name), body)
    return page


def write():
    common.replace(PAGE, render(PAGE.read_text()))


def record(entries, path, quick):
    """Prints the entries of a benchmark, each with its goal or its unit, and keeps them unless the run was a quick one."""
    for e in entries:
        told = f"{e['goal']}: {'reached' if e['reached'] else 'NOT reached'}" if "goal" in e else e["unit"]
        print(f"{e['name']:28} {e['value']:10.5g}   {told}", flush=True)
    if not quick:
        common.write_results(entries, path)
        write()


def run(bench, parts, path, args):
    """Measures the parts that were asked for, all where none was: a part is a method of `bench(args)` that returns entries."""
    try:
        made = bench(args)
        entries = [e for part in args.only or parts for e in getattr(made, part)()]
    except common.Failed as e:
        sys.exit(f"bench: {e}")
    record(entries, path, args.quick)


def main():
    page = PAGE.read_text()
    if "--check" not in sys.argv:
        write()
    elif render(page) != page:
        sys.exit("docs/benchmarks.md does not show benchmarks/results/*.json (hint: python benchmarks/report.py)")


if __name__ == "__main__":
    main()
