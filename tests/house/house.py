"""The order of the house: no circle between files of src/, every room uses only rooms below it, a public type name is defined once,
the paths of a run directory are put together in run_dir.rs alone.

    python tests/house/house.py            # the findings, exit code 1 where there are any
    python tests/house/house.py --graph    # what each file uses, for a look

Rooms and their order are read from the README's map, top to bottom. What a file uses is read from its `use` lines and from paths
in its code (`crate::…`, `super::…`, `self::…`); a name that a module passes on (`pub use`) counts for the file that defines it.
Tests are left out. A file may use what the head of its own module defines (`data/source/json.rs` what `data/source.rs` does, which
calls it): a module and its parts are read together, and no such use counts for a circle. Standard library only.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SRC = ROOT / "src"

# Public type names that are defined more than once on purpose; another one is a finding.
# Args: the arguments of a command, which every file of cli/ has as its own (clap's name for them).
TWICE = {"Args"}


def code(path, strings=False):
    """A file's text without comments and test modules, and without strings unless they are asked for."""
    text = re.sub(r"//[^\n]*", "", path.read_text())
    if not strings:
        text = re.sub(r'"(?:\\.|[^"\\])*"', '""', text)
    cut = re.search(r"#\[cfg\(test\)\]\s*(?:pub(?:\([a-z]+\))? )?mod \w+ \{", text)
    text = text[: cut.start()] if cut else text
    # single items for tests
    return re.sub(r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([a-z]+\))? )?(?:use [^;]*;|mod \w+;)", "", text)


def is_test(path):
    parts = path.relative_to(SRC).with_suffix("").parts
    return any(p == "tests" or p.endswith("_tests") for p in parts)


class House:
    def __init__(self):
        files = [p for p in SRC.rglob("*.rs") if not is_test(p) and p.name != "main.rs" and "native" not in p.parts]
        files = [p for p in files if p.relative_to(SRC).as_posix() != "launch/parent/program.rs"]
        self.file = {self.module(p): p for p in files}
        self.text = {m: code(p) for m, p in self.file.items()}
        self.defines = {m: set(re.findall(r"^\s*(?:pub(?:\([a-z ]+\))? )?(?:unsafe )?(?:async )?(?:const )?(?:extern \"\" )?(?:struct|enum|trait|type|fn|const|static|union|macro_rules!) (\w+)", t, re.M)) for m, t in self.text.items()}
        self.passes = {m: self.reexports(m) for m in self.file}
        self.uses = {m: self.find_uses(m) for m in self.file}

    @staticmethod
    def module(path):
        parts = list(path.relative_to(SRC).with_suffix("").parts)
        if parts[-1] in ("mod", "lib"):
            parts.pop()
        return tuple(parts)

    def reexports(self, m):
        """name → path, of `pub use`."""
        out = {}
        for body in re.findall(r"\bpub(?:\([a-z ]+\))? use ([^;]+);", self.text[m]):
            for path in expand(body):
                names = path.split("::")
                alias = names[-1].split(" as ")
                names[-1] = alias[0].strip()
                out[alias[-1].strip()] = names
        return out

    def absolute(self, m, names):
        """A path from file module m as absolute segments, or None where it is no path of this crate."""
        if names[0] == "crate":
            return tuple(names[1:])
        base = list(m)
        if names[0] == "self":
            return tuple(base + names[1:])
        if names[0] == "super":
            while names and names[0] == "super":
                base = base[:-1]
                names = names[1:]
            return tuple(base + list(names))
        if m + (names[0],) in self.file:
            return m + tuple(names)
        return None

    def resolve(self, path, seen=()):
        """The file module that defines what an absolute path names."""
        if path in seen:
            return None
        best = ()
        for n in range(len(path), -1, -1):
            if path[:n] in self.file:
                best = path[:n]
                break
        rest = path[len(best):]
        if rest and rest[0] in self.passes[best] and rest[0] not in self.defines[best]:
            target = self.absolute(best, self.passes[best][rest[0]])
            if target:
                return self.resolve(target + rest[1:], seen + (path,))
        if rest and rest[0] == "*":
            return best
        return best

    def find_uses(self, m):
        text = self.text[m]
        found = set()
        plain = re.sub(r"\bpub(?:\([a-z ]+\))? use [^;]+;", "", text)
        paths = [p for body in re.findall(r"\buse ([^;]+);", plain) for p in expand(body)]
        rest = re.sub(r"\buse [^;]+;", "", plain)
        paths += re.findall(r"\b(?:crate|super|self)(?:::\w+)+", rest)
        local = set()
        for p in paths:
            names = [n.split(" as ")[0].strip() for n in p.split("::")]
            a = self.absolute(m, names)
            if a is not None:
                found.add(self.resolve(a))
                local.add(p.split("::")[-1].split(" as ")[-1].strip())
        # child::item and Imported::item in code
        for first, second in re.findall(r"(?<![:\w])([a-z_]\w*)::(\w+)", rest):
            if m + (first,) in self.file:
                found.add(self.resolve(m + (first, second)))
        found.discard(m)
        found.discard(None)
        return found


def expand(body):
    """The paths of a use tree."""
    body = re.sub(r"\s+", " ", body.strip())
    i = body.find("{")
    if i < 0:
        return [body]
    head, inner, depth, part, out = body[:i], body[i + 1 : body.rindex("}")], 0, "", []
    for ch in inner + ",":
        if ch == "," and depth == 0:
            if part.strip():
                out += [head + p if p != "self" else head.rstrip(":") for p in expand(part)]
            part = ""
            continue
        depth += (ch == "{") - (ch == "}")
        part += ch
    return out


def circles(uses):
    """Strongly connected components of more than one file (Tarjan)."""
    index, low, stack, on, out, n = {}, {}, [], set(), [], [0]
    sys.setrecursionlimit(10000)

    def visit(v):
        index[v] = low[v] = n[0]
        n[0] += 1
        stack.append(v)
        on.add(v)
        for w in uses[v]:
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in on:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            part = []
            while True:
                w = stack.pop()
                on.discard(w)
                part.append(w)
                if w == v:
                    break
            if len(part) > 1:
                out.append(sorted(part))

    for v in sorted(uses):
        if v not in index:
            visit(v)
    return out


def joined_by_hand(house):
    """Names in a run directory that another file than run_dir.rs appends to a path."""
    joins = lambda m: re.findall(r'\.join\((?:&?format!\()?"([\w.-]+)', code(house.file[m], strings=True))  # noqa: E731
    names = set(re.findall(r'self\.0\.join\("([\w.-]+)"\)', code(house.file[("run_dir",)], strings=True)))
    return [(m, name) for m in sorted(house.file) if m != ("run_dir",) for name in joins(m) if name in names]


def listed(text, mark):
    """Names of rooms in another list, in order: the backquoted words before the colon of each line that begins with mark."""
    order = []
    for line in text.splitlines():
        if line.startswith(mark) and ":" in line:
            names = re.findall(r"`(\w+)`", line.split(": ", 1)[0])
            order += [set(names)] if names else []
    return order


def rooms():
    """Names of rooms from the README's map, the top first; rooms of one line are one."""
    text = (ROOT / "README.md").read_text()
    table = text[text.index("## Map of the source") :]
    order = []
    for line in table.splitlines():
        if m := re.match(r"\| `src/(\w+)/` \|", line):
            order.append({m[1]})
        elif m := re.match(r"\| `src/\{([\w,]+)\}` \|", line):
            order.append(set(m[1].split(",")))
    return order


def main():
    house = House()
    wrong = []
    say = lambda m: "/".join(m) or "lib"  # noqa: E731
    if "--graph" in sys.argv:
        for m in sorted(house.uses):
            print(say(m), "→", ", ".join(say(u) for u in sorted(house.uses[m])))
    across = {m: {u for u in uses if m[: len(u)] != u} for m, uses in house.uses.items()}
    for part in circles(across):
        wrong.append("a circle of files: " + ", ".join(say(m) for m in part))
        for m in part:
            print("   ", say(m), "→", ", ".join(say(u) for u in sorted(house.uses[m]) if u in part))
    order = rooms()
    crate = (SRC / "lib.rs").read_text()
    if listed(crate, "//! - [") != order:
        wrong.append("the crate's # Layout is another list than the README's map")
    page = (ROOT / "docs" / "architecture.md").read_text()
    page = page[page.index("## Rooms") : page.index("## One step")]
    if listed(page, "- `") != order:
        wrong.append("docs/architecture.md, Rooms, is another list than the README's map")
    place = {room: i for i, level in enumerate(order) for room in level}
    for m in sorted(house.file):
        if not m:
            continue
        if m[0] not in place:
            wrong.append(f"{say(m)} is in no room of the README's map")
            continue
        for u in sorted(house.uses[m]):
            if u and u[0] in place and place[u[0]] < place[m[0]]:
                wrong.append(f"{say(m)} uses {say(u)}, a room above its own")
    types = defaultdict(list)
    for m, t in house.text.items():
        for name in re.findall(r"^\s*pub(?:\([a-z ]+\))? (?:struct|enum|trait|union|type) (\w+)", t, re.M):
            if not re.search(rf"^\s+type {name} ?[=;:]", t, re.M):
                types[name].append(m)
    twice = {n: ms for n, ms in types.items() if len(set(ms)) > 1 and n not in TWICE}
    for name in sorted(TWICE - {n for n, ms in types.items() if len(set(ms)) > 1}):
        wrong.append(f"type {name} is defined once now: take it out of this script's list")
    for name, ms in sorted(twice.items()):
        wrong.append(f"type {name} is defined in {', '.join(say(m) for m in ms)}")
    for m, name in joined_by_hand(house):
        wrong.append(f"{say(m)} joins {name} by hand: RunDir has a method for it")
    for w in wrong:
        print(w)
    print(f"{len(house.file)} files, {sum(map(len, house.uses.values()))} uses, {len(types)} type names, {len(wrong)} findings")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
