"""The statistics of the paper's figures and tables: a power law with its uncertainty, Student's t,
paired differences, spikes of a loss curve. numpy and math alone; knows no logs and no pictures."""

import math
from collections import namedtuple

import numpy as np

# ---- Student's t -------------------------------------------------------------------------------


def t_within(t, df):
    """P(|T| <= |t|) of Student's t with a whole number of degrees of freedom: a finite sum
    (Abramowitz and Stegun 26.7.3 and 26.7.4). With angle = atan(t / sqrt(df)):

        odd df   2/pi (angle + sin (cos + 2/3 cos^3 + 2/3 4/5 cos^5 + ... up to cos^(df-2)))
        even df  sin (1 + 1/2 cos^2 + 1/2 3/4 cos^4 + ... up to cos^(df-2))"""
    angle = math.atan(abs(t) / math.sqrt(df))
    sin, cos2 = math.sin(angle), math.cos(angle) ** 2
    odd = df % 2 == 1
    term = math.cos(angle) if odd else 1.0
    total = 0.0 if df == 1 else term
    for k in range(2 if odd else 1, df - 2, 2):
        term *= cos2 * k / (k + 1)
        total += term
    return 2 / math.pi * (angle + sin * total) if odd else sin * total


def t_quantile(df, level=0.95):
    """t with P(|T| <= t) = level, by bisection."""
    low, high = 0.0, 1.0
    while t_within(high, df) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, df) < level else (low, middle)
    return high


# ---- several seeds -----------------------------------------------------------------------------

Paired = namedtuple("Paired", "n mean sd t df p half")


def spread(values):
    """(mean, standard deviation with n - 1; None for one value)."""
    values = np.asarray(values, dtype=np.float64)
    return values.mean(), values.std(ddof=1) if len(values) > 1 else None


def paired_t(differences):
    """The paired t-test of d_i = run - reference, a pair a seed:

        t = mean(d) / (sd(d) / sqrt(n)),   df = n - 1,   p = P(|T| > |t|)

    half: half the width of the 95 % interval of the mean, t_quantile(df) sd / sqrt(n). t, p and
    half are None for fewer than two pairs, and where all differences are the same."""
    n = len(differences)
    mean, sd = spread(differences)
    if not sd:
        return Paired(n, mean, sd, None, n - 1, None, None)
    error = sd / math.sqrt(n)
    t = mean / error
    return Paired(n, mean, sd, t, n - 1, 1 - t_within(t, n - 1), t_quantile(n - 1) * error)


# ---- power law ---------------------------------------------------------------------------------

# f(n) = a n^b. cov: of (log a, b), from the residuals; None where two points leave none.
PowerLaw = namedtuple("PowerLaw", "a b cov df residual")


def fit_power(n, loss):
    """Least squares of log loss = log a + b log n, at least two different n."""
    x, y = np.log(np.asarray(n, dtype=np.float64)), np.log(np.asarray(loss, dtype=np.float64))
    design = np.stack([np.ones_like(x), x], axis=1)
    normal = np.linalg.inv(design.T @ design)
    log_a, b = normal @ design.T @ y
    rest = y - log_a - b * x
    df = len(x) - 2
    variance = rest @ rest / df if df > 0 else None
    return PowerLaw(
        math.exp(log_a),
        b,
        None if variance is None else normal * variance,
        df,
        None if variance is None else math.sqrt(variance),
    )


def intervals(fit, level=0.95):
    """((a low, a high), (b low, b high)), or None where the points leave no degree of freedom."""
    if fit.cov is None:
        return None
    t = t_quantile(fit.df, level)
    da, db = t * math.sqrt(fit.cov[0, 0]), t * math.sqrt(fit.cov[1, 1])
    return (fit.a * math.exp(-da), fit.a * math.exp(da)), (fit.b - db, fit.b + db)


def size_at(fit, loss):
    """n with f(n) = loss."""
    return (loss / fit.a) ** (1 / fit.b)


def log_size_variance(fit, loss):
    """Of log size_at, to first order: the variance of the line at that size over b^2."""
    x = math.log(size_at(fit, loss))
    line = fit.cov[0, 0] + 2 * x * fit.cov[0, 1] + x * x * fit.cov[1, 1]
    return line / fit.b**2


Saving = namedtuple("Saving", "share low high")


def saving(reference, fit, loss, level=0.95):
    """The share of parameters that fit needs fewer than reference to reach a loss:
    1 - n_fit / n_reference, and its interval where both fits have an uncertainty. The two are
    taken as independent; runs that share their data are not, so this is rather too wide."""
    log_ratio = math.log(size_at(fit, loss) / size_at(reference, loss))
    if reference.cov is None or fit.cov is None:
        return Saving(1 - math.exp(log_ratio), None, None)
    t = t_quantile(reference.df + fit.df, level)
    half = t * math.sqrt(log_size_variance(fit, loss) + log_size_variance(reference, loss))
    return Saving(
        1 - math.exp(log_ratio), 1 - math.exp(log_ratio + half), 1 - math.exp(log_ratio - half)
    )


# ---- spikes ------------------------------------------------------------------------------------

WINDOW, NEAR, HEIGHT, APART = 50, 10, 8.0, 10
MAD_TO_SD = 1.4826  # of a normal distribution

SPIKES = (
    "A step is above the line when its loss exceeds the lower of two medians, of the {near} and of "
    "the {window} steps before it, by more than {height:g} times the noise: 1.4826 / sqrt 2 x the "
    "median distance of the {window} changes from step to step from their own median, which is "
    "the standard deviation of independent normal noise on any trend. A step whose loss is not "
    "finite is above it. Steps above the line at most {apart} apart are one spike."
)

Spikes = namedtuple("Spikes", "first steps line")


def finite_medians(rows):
    """Median of the finite values of each row; NaN where there are none."""
    out = np.full(len(rows), np.nan)
    some = np.isfinite(rows).any(axis=1)
    out[some] = np.nanmedian(np.where(np.isfinite(rows[some]), rows[some], np.nan), axis=1)
    return out


def find_spikes(loss, window=WINDOW, height=HEIGHT, apart=APART):
    """Spikes as SPIKES defines them. Medians do not feel what takes up less than half of them, so
    that a spike does not hide the next. While the loss falls steeply the short median is the lower
    one and keeps close to it; a slow rise stands out from the long one, and a rise that lasts
    counts once, when it comes.

    first: indices at which spikes begin; steps: how many are above the line; line: (len(loss)),
    NaN while fewer than window + 1 steps have gone before."""
    loss = np.asarray(loss, dtype=np.float64)
    line = np.full(len(loss), np.nan)
    if len(loss) > window + 1:
        with np.errstate(invalid="ignore"):
            change = np.diff(loss)
        windows = np.lib.stride_tricks.sliding_window_view
        before = windows(loss, window)[1:-1]  # row i: the steps before window + 1 + i
        changes = windows(change, window)[:-1]
        middle = finite_medians(changes)
        noise = finite_medians(np.abs(changes - middle[:, None])) * MAD_TO_SD / math.sqrt(2)
        level = np.fmin(finite_medians(before), finite_medians(before[:, -NEAR:]))
        line[window + 1 :] = level + height * noise
    with np.errstate(invalid="ignore"):
        above = np.flatnonzero(~np.isfinite(loss) | (loss > line))
    if not len(above):
        return Spikes(above, 0, line)
    begins = np.append(True, np.diff(above) > apart)
    return Spikes(above[begins], len(above), line)
