/* probe.h: what a model's attention looks like while it trains: how its probabilities are spread,
 * how large the Jacobian of its softmax is, and how much gradient reaches the projections of
 * queries, keys and values. Reads what a training step left; changes nothing. */
#ifndef LASER_PROBE_H
#define LASER_PROBE_H

#include "laser/json.h"
#include "laser/model.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { PROBE_BINS = 24 }; /* half decades from 1e-12 to 1; the first holds all that is smaller */

typedef struct ProbeLayer {
    int64_t probabilities; /* those under the causal mask, of all heads and maps */
    int64_t below_1e3, below_1e7;
    int64_t bins[PROBE_BINS];
    int64_t rows;
    double jacobian; /* sum over rows of the Frobenius norm of diag(p) - p p^T */
    double slope; /* sum over rows of the root mean square over channels c of |d out_c / d scores|:
                     p_j (v_jc - out_c), or LASER's p_j e_jc / l_c - p_j */
    double grad_q, grad_k, grad_v; /* norms of the gradient of each third of W_qkv */
} ProbeLayer;

/* Of the first sequence of the last forward pass and of the last gradients. Waits for the backend.
 * Activations must be kept (--recompute none or light). */
void probe_layer(const Model *m, int layer, int T, ProbeLayer *out);

/* One causal map on the host: T rows of q, k (DK) and v (HD), ld floats apart. Adds to out. */
typedef struct ProbeMap {
    const float *q, *k, *v;
    size_t ld;
    int T, DK, HD;
    double scale, softcap;
    bool laser;
} ProbeMap;
void probe_map(const ProbeMap *map, ProbeLayer *out);

/* {"below_1e-3":share,"below_1e-7":share,"jacobian":mean,"slope":mean,"grad_q":..,"bins":[counts]}
 */
void probe_json(Text *t, const ProbeLayer *layer);

#ifdef __cplusplus
}
#endif
#endif
