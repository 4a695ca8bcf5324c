/* cuda/activation.cuh: the derivative of an activation, for the file that makes layers of products.
 * Private to laser/cuda. */
#ifndef LASER_CUDA_ACTIVATION_CUH
#define LASER_CUDA_ACTIVATION_CUH

#include "laser/cuda/backend.cuh"

/* dx *= act'(at); at is the value before the activation, or, with ReLU, its output. */
void act_bwd(Backend *be, act_t *dx /* (n) */, const act_t *at /* (n) */, Act act, size_t n);

#endif
