# processes.awk: samples "ROUND ARM MILLISECONDS" of processes.sh to a table; arms: hand, mpirun, several. A
# ratio is the median over the rounds. shares: a file with "ROUND ARM PERCENT" of steps within MPI.

function median(values, n,    i, j, x) {
    for (i = 2; i <= n; i++) {
        x = values[i]
        for (j = i - 1; j >= 1 && values[j] > x; j--) values[j + 1] = values[j]
        values[j + 1] = x
    }
    return n % 2 ? values[(n + 1) / 2] : (values[n / 2] + values[n / 2 + 1]) / 2
}

function line(arm, what,    r, values) {
    for (r = 1; r <= rounds; r++) values[r] = sample[arm, r]
    ms = median(values, rounds)
    printf "  %-44s %10.2f %10.0f\n", what, ms, 1e3 * tokens / ms
}

function print_ratio(what, a, b,    r, values, middle) {
    for (r = 1; r <= rounds; r++) values[r] = sample[a, r] / sample[b, r]
    middle = median(values, rounds)
    printf "  %-44s %10.3f   (%d rounds, %.3f to %.3f)\n", what, middle, rounds, values[1],
        values[rounds]
}

{ sample[$2, $1] = $3; if ($1 > rounds) rounds = $1 }

END {
    while ((getline text < shares) > 0) {
        split(text, part, " ")
        if (part[2] == "several") share[++count] = part[3]
    }
    split_threads = threads / processes
    printf "\n  %-44s %10s %10s\n", "", "ms a step", "tokens/s"
    line("hand", "1 process x " threads " threads")
    line("mpirun", "the same, under mpirun")
    line("several", processes " processes x " split_threads (split_threads > 1 ? " threads" : " thread"))
    print ""
    print_ratio("time under mpirun / without", "mpirun", "hand")
    print_ratio("time of " processes " processes / of 1", "several", "hand")
    if (count) printf "  %-44s %9.1f %%\n", "share of steps within MPI, rank 0", median(share, count)
}
