"""What is said of several runs: the median, and the worst beside it."""

from statistics import median


def over(runs, key, pick=median):
    """Of the runs that have a value."""
    values = [run[key] for run in runs if run.get(key) is not None]
    return pick(values) if values else None


def of_arm(runs, arm):
    return [run for run in runs if run["arm"] == arm]


def ratios(runs, key, arm, peer):
    """Round by round, `arm` over `peer`: what the machine does to one it does to the other."""
    by_round = {(run["round"], run["arm"]): run.get(key) for run in runs}
    return [by_round[n, arm] / by_round[n, peer] for n in sorted({n for n, _ in by_round})
            if by_round.get((n, arm)) and by_round.get((n, peer))]


def in_turn(arms, number):
    """Another arm begins each round, so that no arm always follows the same one."""
    return arms[number % len(arms):] + arms[:number % len(arms)]
