# ops_beside.awk: two tables of bench_ops, standard attention's and LASER's, side by side: time of
# an operation in each, and what LASER adds to a step. Columns are those that bench_ops prints.

FNR == 1 { file++ }
/^  [a-zA-Z]/ && !/^  operation/ {
    name = substr($0, 3, 22)
    if (file == 1) names[++count] = name
    us[file, name] = substr($0, 35, 12) + 0
    ms[file, name] = $NF
    seen[file, name] = 1
}

END {
    printf "  %-22s %12s %12s %8s %14s\n", "operation", "standard us", "LASER us", "ratio",
        "ms in a step"
    for (i = 1; i <= count; i++) {
        name = names[i]
        if (!((2, name) in seen)) continue
        plus = ms[2, name] - ms[1, name]
        if (us[1, name] > 0)
            printf "  %-22s %12.2f %12.2f %8.3f %+14.3f\n", name, us[1, name], us[2, name],
                us[2, name] / us[1, name], plus
        else if (ms[1, name] > 0)
            printf "  %-22s %9.3f ms %9.3f ms %8.3f %+14.3f\n", name, ms[1, name], ms[2, name],
                ms[2, name] / ms[1, name], plus
    }
}
