"""The summary of gpu_check.sh: what has passed, and each goal of speed with what was reached.

    gpu_report.py LOG...        several logs of one machine are taken together, later ones count

Reads the logs alone, so that it can run where no GPU is."""

import re
import sys

MFU_GOALS = {"301M": 55, "1.1B": 66, "2.2B": 66, "7.7B": 68}  # percent, of an H200
LASER_COST, MEMORY_APART, START_SECONDS = 1.03, 0.05, 10.0


class Log:
    def __init__(self, paths):
        self.sections = {}  # name: exit status, or None where it did not end
        self.tests = []  # (what, "N passed, N failed")
        self.failures, self.skipped, self.late = [], [], 0
        self.steps = {}  # (preset, attention, core): dict
        self.starts, self.peers = {}, {}
        for path in paths:
            with open(path, encoding="utf-8", errors="replace") as f:
                self.read(f)

    def read(self, lines):
        heading = None
        for line in lines:
            line = line.rstrip("\n")
            if found := re.match(r"==== (\w+): (?:ended with (\d+))?", line):
                self.sections[found[1]] = int(found[2]) if found[2] else None
                heading = found[1]
            elif line.startswith("== "):
                heading = line[3:]
            elif re.match(r"\d+ passed, \d+ failed", line):
                self.tests.append((heading, line))
            elif re.match(r"FAILED|error:|=* (ERROR|RACECHECK) SUMMARY: [1-9]", line):
                self.failures.append(f"{heading}: {line}")
            elif line.startswith("skipped, no time left"):
                self.late += 1
            elif line.startswith("skipped"):
                self.skipped.append(f"{heading}: {line}")
            self.read_numbers(heading, line)

    def read_numbers(self, heading, line):
        key = re.match(r"(\S+) (laser|standard) (auto|gemm|cudnn): (.*)", heading or "")
        if key:
            step = self.steps.setdefault(key.groups()[:3], {"options": key[4]})
            for name, pattern in (
                ("ms", r"step, median of .*?: ([\d.]+) ms"),
                ("tokens", r"([\d.]+) tokens/s"),
                ("mfu", r"MFU ([\d.]+) %"),
                ("planned", r"memory, planned: ([\d.]+)"),
                ("used", r"memory, by nvidia-smi: ([\d.]+)"),
            ):
                if found := re.search(pattern, line):
                    step[name] = float(found[1])
        if found := re.match(r"start of 301M, ([\w-]+): .* ([\d.]+) s", line):
            self.starts[found[1]] = float(found[2])
        if found := re.match(r"(llm\.c|PyTorch): step, .* ([\d.]+) tokens/s", line):
            name = found[1] if found[1] == "PyTorch" else f"llm.c ({heading})"
            self.peers[name] = float(found[2])


def verdict(good):
    return "reached" if good else "MISSED"


def print_tests(log):
    print("Sections")
    for name, status in log.sections.items():
        said = {0: "ok", None: "did not end"}.get(status, "FAILED")
        print(f"  {name:<10} {said}")
    print("\nTests")
    for heading, line in log.tests:
        print(f"  {heading:<40} {line}")
    for line in log.failures + log.skipped:
        print(f"  {line}")
    if log.late:
        print(f"  {log.late} commands had no time left: run their sections alone")


def print_steps(log):
    print(f"\n{'Whole steps':<30} {'ms':>10} {'tokens/s':>12} {'MFU %':>7} {'GiB planned':>12} "
          f"{'used':>8} {'ratio':>6}  options")
    for key, s in log.steps.items():
        if "ms" not in s:
            print(f"  {' '.join(key):<28} failed")
            continue
        memory = ""
        if "used" in s and "planned" in s:
            memory = f"{s['planned']:12.2f} {s['used']:8.2f} {s['used'] / s['planned']:6.3f}"
        print(f"  {' '.join(key):<28} {s['ms']:10.2f} {s['tokens']:12.0f} {s['mfu']:7.2f} "
              f"{memory:28}  {s['options']}")


def best(log, preset, attention, field, choose):
    found = [s[field] for (p, a, _), s in log.steps.items()
             if (p, a) == (preset, attention) and field in s]
    return choose(found) if found else None


def print_goals(log):
    print("\nGoals (DESIGN.md, section 8)")
    for preset, goal in MFU_GOALS.items():
        for attention in ("standard", "laser"):
            mfu = best(log, preset, attention, "mfu", max)
            said = "not measured" if mfu is None else f"{mfu:.1f} % {verdict(mfu >= goal)}"
            print(f"  MFU {preset} {attention}, {goal} % on an H200: {said}")
    for preset, _, core in [k for k in log.steps if k[1] == "laser"]:
        pair = [log.steps.get((preset, a, core), {}).get("ms") for a in ("laser", "standard")]
        if all(pair):
            ratio = pair[0] / pair[1]
            print(f"  LASER's time / standard's, {preset} {core}, at most {LASER_COST}: "
                  f"{ratio:.3f} {verdict(ratio <= LASER_COST)}")
    pairs = [(s["used"], s["planned"]) for s in log.steps.values() if "used" in s and "ms" in s]
    ratios = [used / planned for used, planned in pairs]
    if ratios:
        good = all(abs(r - 1) <= MEMORY_APART for r in ratios)
        print(f"  memory used / planned, within 5 %: {min(ratios):.3f} to {max(ratios):.3f} "
              f"{verdict(good)}")
    for how, seconds in log.starts.items():
        print(f"  start of 301M, {how}, under {START_SECONDS:.0f} s: {seconds:.2f} s "
              f"{verdict(seconds < START_SECONDS)}")
    ours = best(log, "gpt2-124M", "standard", "tokens", max)
    for name, tokens in log.peers.items():
        beside = f", ours is {ours / tokens:.2f} times as fast" if ours else ""
        print(f"  gpt2-124M: {name} {tokens:.0f} tokens/s{beside}")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    log = Log(sys.argv[1:])
    print_tests(log)
    print_steps(log)
    print_goals(log)


if __name__ == "__main__":
    main()
