"""Exact answers to small problems, by trying everything in fractions; shares no code with the planner."""

from __future__ import annotations

from fractions import Fraction


def served(loads, replicas, caps=()):
    """Return how many buckets' worth of requests these replicas can serve: an exact simplex in fractions.

    maximise sum x[b, j]  subject to  sum_j x[b, j] <= 1,  sum_b load[b, j] x[b, j] <= n[j],  x >= 0  (Bland's rule).

    caps : more rows ({(b, j): coefficient}, at most so much).
    """
    pairs = sorted(loads)
    n_buckets = 1 + max(b for b, _ in pairs)
    n_rows = n_buckets + len(replicas) + len(caps)
    table = [[Fraction(0)] * len(pairs) for _ in range(n_rows)]
    for column, (b, j) in enumerate(pairs):
        table[b][column] = Fraction(1)
        table[n_buckets + j][column] = loads[b, j]
        for index, (coefficients, _) in enumerate(caps):
            table[n_buckets + len(replicas) + index][column] = Fraction(coefficients.get((b, j), 0))
    rhs = [Fraction(1)] * n_buckets + [Fraction(n) for n in replicas] + [Fraction(bound) for _, bound in caps]
    for row in range(n_rows):
        table[row] += [Fraction(int(row == other)) for other in range(n_rows)]
    reduced = [Fraction(1)] * len(pairs) + [Fraction(0)] * n_rows
    basis = [len(pairs) + row for row in range(n_rows)]
    total = Fraction(0)
    while True:
        enter = next((column for column, value in enumerate(reduced) if value > 0), None)
        if enter is None:
            return total
        ratios = [(rhs[r] / table[r][enter], basis[r], r) for r in range(n_rows) if table[r][enter] > 0]
        _, _, leave = min(ratios)
        pivot = table[leave][enter]
        table[leave] = [value / pivot for value in table[leave]]
        rhs[leave] /= pivot
        for row in range(n_rows):
            if row != leave and table[row][enter]:
                factor = table[row][enter]
                table[row] = [a - factor * b for a, b in zip(table[row], table[leave], strict=True)]
                rhs[row] -= factor * rhs[leave]
        factor = reduced[enter]
        reduced = [a - factor * b for a, b in zip(reduced, table[leave], strict=True)]
        total += factor * rhs[leave]
        basis[leave] = enter


def fits(sizes, gpus):
    """Return the fewest instances that hold replicas of these sizes, by trying every partition, each once."""
    sizes = sorted(sizes, reverse=True)
    best, least = len(sizes), -(-sum(sizes) // gpus)
    seen = set()

    def place(index, rooms):
        nonlocal best
        if best <= least or (index, rooms) in seen or (len(rooms) >= best and index < len(sizes)):
            return
        seen.add((index, rooms))
        if index == len(sizes):
            best = min(best, len(rooms))
            return
        for position in {room: at for at, room in enumerate(rooms)}.values():
            if rooms[position] >= sizes[index]:
                others = (*rooms[:position], *rooms[position + 1 :])
                place(index + 1, tuple(sorted((*others, rooms[position] - sizes[index]))))
        place(index + 1, tuple(sorted((*rooms, gpus - sizes[index]))))

    place(0, ())
    return best
