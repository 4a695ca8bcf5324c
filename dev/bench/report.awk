# report.awk: samples "ROUND NAME VALUE" of bench.sh (milliseconds of a step, or GFLOP/s for
# sgemm:*) to a table. A ratio is the median over the rounds that have both values; round 0 is
# warm-up.

function median(values, n,    i, j, x) {
    for (i = 2; i <= n; i++) {
        x = values[i]
        for (j = i - 1; j >= 1 && values[j] > x; j--) values[j + 1] = values[j]
        values[j + 1] = x
    }
    return n % 2 ? values[(n + 1) / 2] : (values[n / 2] + values[n / 2 + 1]) / 2
}

# of all samples of a name
function typical(name,    r, n, values) {
    n = 0
    for (r = 1; r <= rounds; r++) if ((name, r) in sample) values[++n] = sample[name, r]
    return median(values, n)
}

# time of a over time of b; also sets ratio_low, ratio_high, ratio_count
function ratio(a, b,    r, n, values, result) {
    n = 0
    for (r = 1; r <= rounds; r++)
        if ((a, r) in sample && (b, r) in sample) values[++n] = sample[a, r] / sample[b, r]
    ratio_count = n
    result = median(values, n)
    ratio_low = values[1]
    ratio_high = values[n]
    return result
}

# A step's rate over that of sgemm, measured just before and just after it.
function fraction(name, gemm,    r, n, values, rate) {
    n = 0
    for (r = 1; r <= rounds; r++)
        if ((name, r) in sample) {
            rate = (sample[gemm, r] + sample[gemm, r + 1]) / 2
            values[++n] = flops / sample[name, r] / 1e6 / rate
        }
    return 100 * median(values, n)
}

function print_ratio(what, a, b,    value) {
    if (!(a in best) || !(b in best)) return
    value = ratio(a, b)
    printf "  %-34s %8.3f   (%d rounds, %.3f to %.3f)\n", what, value, ratio_count, ratio_low,
        ratio_high
}

$1 == 0 || $3 == 0 { next }
{
    if (!($2 in best)) names[++count] = $2
    sample[$2, $1] = $3
    if (!($2 in best) || $3 < best[$2]) best[$2] = $3
    if ($1 > rounds) rounds = $1
}

END {
    for (i = 1; i <= count; i++)
        if (names[i] ~ /^sgemm/) {
            rate = typical(names[i])
            printf "  %-22s %8.1f GFLOP/s (median)\n", names[i], rate
            if (rate > fastest_rate) { fastest_rate = rate; fastest = names[i] }
        }
    printf "\n  %-12s %12s %12s %12s %14s %12s\n", "", "ms, median", "ms, best", "tokens/s",
        "model GFLOP/s", "% of sgemm"
    for (i = 1; i <= count; i++) {
        name = names[i]
        if (name ~ /^sgemm/) continue
        ms = typical(name)
        printf "  %-12s %12.1f %12.1f %12.1f %14.1f %12.1f\n", name, ms, best[name],
            1e3 * tokens / ms, flops / ms / 1e6, fraction(name, fastest)
    }
    printf "  (sgemm: the fastest, %s)\n\n", fastest
    print_ratio("LASER's time / standard's", "laser", "standard")
    print_ratio("PyTorch's time / standard's", "PyTorch", "standard")
    print_ratio("llm.c's time / standard's", "llm.c", "standard")
}
