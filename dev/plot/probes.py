"""What --probe-attention N wrote of a run's attention: the spread of its probabilities, and sizes
of what the softmax hands back. Knows records (laser/probe.h says what is in them), not how they
are drawn."""

import numpy as np

import runs as R

# bins of a probe: half decades, the first from LOWEST on and all below it
LOWEST, BINS_EACH_DECADE = -12, 2

SHARES = {"below_1e-3": 1e-3, "below_1e-7": 1e-7}
# Figure 1's text, of a model with 2.2B parameters and 1024 tokens
PAPER_SHARES = {"below_1e-3": 0.8, "below_1e-7": 0.2}

QUANTITIES = {
    "jacobian": "Jacobian of the softmax",
    "slope": "slope of the output",
    "grad_q": "gradient of W_q",
    "grad_k": "gradient of W_k",
    "grad_v": "gradient of W_v",
}


class Probes:
    """step: (probes); share[name], quantity[name]: (probes, layers); bins: (probes, layers, bins),
    counts of probabilities."""

    def __init__(self, run):
        self.step = np.array([record["step"] for record in run.probes], dtype=np.int64)
        self.share = {name: self.table(run, name) for name in SHARES}
        self.quantity = {name: self.table(run, name) for name in QUANTITIES}
        self.bins = self.table(run, "bins")
        self.layers = self.bins.shape[1]

    @staticmethod
    def table(run, name):
        """(probes, layers, ...) of what every layer of every probe says."""
        try:
            rows = [[layer[name] for layer in record["layers"]] for record in run.probes]
            values = np.array(rows, dtype=np.float64)
            if values.ndim != (3 if name == "bins" else 2) or not values.size:
                raise ValueError("expected the same numbers of each layer")
        except (KeyError, TypeError, ValueError) as error:
            R.fail(R.EXIT_INPUT, f'{run.path}: a line of kind "probe" is damaged: {name}: {error}')
        return values

    def all_layers(self, name):
        """(probes) the share of all layers' probabilities."""
        return np.average(self.share[name], axis=1, weights=self.bins[0].sum(axis=1))

    def histogram(self, i):
        """Edges (bins + 1) and the share of probe i's probabilities between them, all layers."""
        counts = self.bins[i].sum(axis=0)
        edges = 10.0 ** (LOWEST + np.arange(len(counts) + 1) / BINS_EACH_DECADE)
        return edges, counts / counts.sum()


def read(run):
    if not run.probes:
        R.fail(R.EXIT_INPUT, f"{run.path}: has no probe: train with --probe-attention N")
    return Probes(run)


def uniform_share(T, bound):
    """Of the probabilities of T causal rows that see all before them alike, those below bound."""
    n = np.arange(1, T + 1, dtype=np.float64)
    return n[1 / n < bound].sum() / n.sum()


def ratio(standard, laser, name):
    """LASER / standard at the probes that both have: (probes, layers); not finite where either is
    zero."""
    _, i, j = np.intersect1d(standard.step, laser.step, return_indices=True)
    layers = min(standard.layers, laser.layers)
    with np.errstate(all="ignore"):
        return laser.quantity[name][j, :layers] / standard.quantity[name][i, :layers]


def geometric_mean(values):
    """None where nothing is finite and above zero."""
    good = values[np.isfinite(values) & (values > 0)]
    return np.exp(np.log(good).mean()) if len(good) else None
