#!/usr/bin/env python3
"""model_ref.py: the model in PyTorch, float64, written from its description and not from the C
code; writes the fixtures that dev/test/test_model.c compares with. Needs torch and numpy, and
transformers to check the GPT-2 shape against GPT2LMHeadModel. Knows no file of laser/.

    python3 dev/ref/model_ref.py [--out dev/ref/fixtures] [--check]

--check writes nothing and fails when the files there differ from what would be written. One file a
shape; in it, for KIND in standard, laser:

    config.integers   L C F H HD V T B STEPS WARMUP SCHEDULE_STEPS, act (0 none, 1 relu, 2 gelu),
                      pos (0 sinusoid, 1 learned, 2 rope, 3 none), bias_attn, bias_mlp,
                      bias_logits, embed_scale, per_dim_scale, qk_norm, diff, diff_plain
    config.reals      norm_eps attn_cap logit_cap lr min_lr_ratio beta1 beta2 eps weight_decay
                      grad_clip temperature
    tokens            (STEPS, B, T + 1): step s trains on [s, :, :-1] with targets [s, :, 1:]
    init.NAME         weights; as on disk, so linear weights of a layer are (in, out)
    KIND.logits       (B, T, V) of the first batch;    KIND.loss (STEPS), before each update
    KIND.grad.NAME    of the mean loss of the first batch
    KIND.grad_norm    (STEPS), before clipping
    KIND.final.NAME   weights after STEPS updates
"""
import argparse
import json
import math
import pathlib
import sys

import numpy as np
import torch

torch.set_num_threads(1)
ACTS = ["none", "relu", "gelu"]
POSITIONS = ["sinusoid", "learned", "rope", "none"]
STEPS = 10

# A shape that fits into a fixture five times. Of so few channels a norm may find hardly any
# variance, and two maps may hardly differ, which would enlarge rounding errors: epsilon is large,
# and the seeds are of weights where rounding activations to bf16 moves no gradient by 4 %.
SMALL = dict(L=2, C=6, F=8, H=2, HD=8, V=19, T=9, B=2, act="gelu", pos="sinusoid", bias_attn=0,
             bias_mlp=0, bias_logits=0, embed_scale=0, norm_eps=0.1, attn_cap=0.0, logit_cap=0.0)
UNMODIFIED = dict(temperature=1.0, per_dim_scale=0, qk_norm=0, diff=0, diff_plain=0)

SHAPES = {
    "gpt2": dict(L=2, C=24, F=34, H=3, HD=8, V=67, T=13, B=2, act="gelu", pos="learned",
                 bias_attn=1, bias_mlp=1, bias_logits=0, embed_scale=0, norm_eps=1e-5,
                 attn_cap=0.0, logit_cap=0.0),
    "paper": dict(L=2, C=26, F=38, H=3, HD=12, V=67, T=13, B=2, act="relu", pos="sinusoid",
                  bias_attn=0, bias_mlp=1, bias_logits=1, embed_scale=1, norm_eps=1e-6,
                  attn_cap=5.0, logit_cap=8.0),
    "rope": dict(L=2, C=26, F=40, H=2, HD=8, V=67, T=17, B=2, act="gelu", pos="rope",
                 bias_attn=0, bias_mlp=0, bias_logits=0, embed_scale=0, norm_eps=1e-6,
                 attn_cap=0.0, logit_cap=0.0),
    # attention's modifiers
    "scale": dict(SMALL, seed=8, temperature=1.7, per_dim_scale=1),
    "qknorm": dict(SMALL, seed=13, qk_norm=1, pos="rope"),
    "diff": dict(SMALL, seed=21, diff=1),
    "plain": dict(SMALL, seed=151, diff=1, diff_plain=1, pos="learned"),
    "all": dict(SMALL, seed=193, temperature=1.3, per_dim_scale=1, qk_norm=1, diff=1, pos="rope",
                attn_cap=4.0, logit_cap=8.0),
}
# eps is large so that an update is a smooth function of the gradient: with a tiny one, an element
# whose gradient is rounding noise (the key biases') moves by lr in a random direction. Tiny eps is
# tested on op_adamw alone.
TRAIN = dict(lr=0.02, min_lr_ratio=0.1, beta1=0.9, beta2=0.99, eps=1e-4, weight_decay=0.1,
             grad_clip=1.0, warmup=3, schedule_steps=12)


def initial_weights(s, seed):
    """float32; so large that attention is far from uniform and LASER far from standard."""
    rng = np.random.Generator(np.random.PCG64(seed))
    A, C, F = s["H"] * s["HD"], s["C"], s["F"]
    w = {}

    def normal(name, shape, std, mean=0.0):
        w[name] = (mean + std * rng.standard_normal(shape)).astype(np.float32)

    normal("transformer.wte.weight", (s["V"], C), 0.3)
    if s["pos"] == "learned":
        normal("transformer.wpe.weight", (s["T"], C), 0.3)
    for l in range(s["L"]):
        h = f"transformer.h.{l}."
        for norm in ("ln_1", "ln_2"):
            normal(h + norm + ".weight", (C,), 0.2, 1.0)
            normal(h + norm + ".bias", (C,), 0.2)
        linears = (("attn.c_attn", C, 3 * A, s["bias_attn"], 1.5),
                   ("attn.c_proj", A, C, s["bias_attn"], 1.0),
                   ("mlp.c_fc", C, F, s["bias_mlp"], 1.0),
                   ("mlp.c_proj", F, C, s["bias_mlp"], 1.0))
        for layer, fan_in, fan_out, biased, gain in linears:
            normal(h + layer + ".weight", (fan_in, fan_out), gain / math.sqrt(fan_in))
            if biased:
                normal(h + layer + ".bias", (fan_out,), 0.2)
        scored = s["HD"] // 2 if s["diff"] else s["HD"]
        if s["qk_norm"]:
            normal(h + "attn.q_norm.weight", (scored,), 0.3, 1.0)
            normal(h + "attn.k_norm.weight", (scored,), 0.3, 1.0)
        if s["per_dim_scale"]:
            normal(h + "attn.per_dim_scale", (scored,), 0.7)
        if s["diff"]:
            for vector in ("q1", "k1", "q2", "k2"):
                normal(h + "attn.lambda_" + vector, (scored,), 0.4)
            if not s["diff_plain"]:
                normal(h + "attn.diff_norm.weight", (s["HD"],), 0.3, 1.0)
    normal("transformer.ln_f.weight", (C,), 0.2, 1.0)
    normal("transformer.ln_f.bias", (C,), 0.2)
    if s["bias_logits"]:
        normal("lm_head.bias", (s["V"],), 0.2)
    return w


def layer_norm(x, w, b, eps):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * w + b


def activation(x, act):
    if act == "relu":
        return torch.where(x > 0, x, torch.zeros_like(x))
    if act == "gelu":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x


def cap(x, limit):
    return limit * torch.tanh(x / limit) if limit > 0 else x


def sinusoids(T, C):
    channel = torch.arange(C // 2, dtype=torch.float64)
    scales = torch.exp(-math.log(1e4) / (C // 2 - 1) * channel)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * scales[None, :]
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


def rotate(x):
    """x (B, H, T, HD): pairs (i, i + HD/2) turned by t * 1e4^(-2i/HD), as complex numbers."""
    T, HD = x.shape[-2:]
    speed = 1e4 ** (-2 * torch.arange(HD // 2, dtype=torch.float64) / HD)
    turn = torch.exp(1j * torch.arange(T, dtype=torch.float64)[:, None] * speed[None, :])
    z = torch.complex(x[..., : HD // 2], x[..., HD // 2:]) * turn
    return torch.cat([z.real, z.imag], dim=-1)


def attention(q, k, v, temperature, limit, laser):
    """q, k (B, H, T, channels of the scores), v (B, H, T, HD)."""
    T, channels = q.shape[-2:]
    scores = cap(q @ k.transpose(-1, -2) / (temperature * math.sqrt(channels)), limit)
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    if not laser:
        return torch.softmax(scores, -1) @ v
    terms = torch.log_softmax(scores, -1)[..., :, :, None] + v[..., None, :, :]
    out = torch.logsumexp(terms, dim=-2)
    with torch.no_grad():  # the paper's Algorithm 1
        m = v.amax(dim=-2, keepdim=True)
        paper = torch.log(torch.softmax(scores, -1) @ torch.exp(v - m)) + m
        assert (paper - out).abs().max() < 1e-11, "log-sum-exp and the paper's form differ"
    return out


def prepare(s, w, h, q, k):
    """Queries and keys (B, heads, T, channels) as the scores see them."""
    if s["pos"] == "rope":
        q, k = rotate(q), rotate(k)
    if s["qk_norm"]:
        q = layer_norm(q, w[h + "attn.q_norm.weight"], 0.0, s["norm_eps"])
        k = layer_norm(k, w[h + "attn.k_norm.weight"], 0.0, s["norm_eps"])
    if s["per_dim_scale"]:
        q = q * 1.442695041 * torch.nn.functional.softplus(w[h + "attn.per_dim_scale"])
    return q, k


def combine(s, w, h, layer, first, second):
    """Differential attention (arXiv 2410.05258), of two maps over the same values."""
    start = 0.8 - 0.6 * math.exp(-0.3 * layer)
    dots = [w[h + f"attn.lambda_q{i}"] @ w[h + f"attn.lambda_k{i}"] for i in (1, 2)]
    y = first - (torch.exp(dots[0]) - torch.exp(dots[1]) + start) * second
    if s["diff_plain"]:
        return y
    y = y / torch.sqrt((y**2).mean(-1, keepdim=True) + 1e-5)
    return (1 - start) * y * w[h + "attn.diff_norm.weight"]


def mix(s, w, layer, qkv, laser):
    """What attention makes of qkv (B, T, 3, H, HD): (B, T, H * HD)."""
    B, T, _, H, HD = qkv.shape
    h = f"transformer.h.{layer}."
    v = qkv[:, :, 2].transpose(1, 2)
    maps = 2 if s["diff"] else 1
    heads = (qkv[:, :, i].reshape(B, T, H * maps, HD // maps).transpose(1, 2) for i in (0, 1))
    q, k = prepare(s, w, h, *heads)
    out = [attention(q[:, i::maps], k[:, i::maps], v, s["temperature"], s["attn_cap"], laser)
           for i in range(maps)]
    out = combine(s, w, h, layer, *out) if s["diff"] else out[0]
    return out.transpose(1, 2).reshape(B, T, H * HD)


def forward(s, w, tokens, laser):
    B, T = tokens.shape
    H, HD = s["H"], s["HD"]

    def linear(x, name):
        y = x @ w[name + ".weight"]
        return y + w[name + ".bias"] if name + ".bias" in w else y

    def norm(x, name):
        return layer_norm(x, w[name + ".weight"], w[name + ".bias"], s["norm_eps"])

    x = w["transformer.wte.weight"][tokens]
    if s["embed_scale"]:
        x = x * math.sqrt(s["C"])
    if s["pos"] == "learned":
        x = x + w["transformer.wpe.weight"][:T]
    elif s["pos"] == "sinusoid":
        x = x + sinusoids(T, s["C"])
    for l in range(s["L"]):
        h = f"transformer.h.{l}."
        qkv = linear(norm(x, h + "ln_1"), h + "attn.c_attn").reshape(B, T, 3, H, HD)
        x = x + linear(mix(s, w, l, qkv, laser), h + "attn.c_proj")
        hidden = activation(linear(norm(x, h + "ln_2"), h + "mlp.c_fc"), s["act"])
        x = x + linear(hidden, h + "mlp.c_proj")
    logits = norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T
    if s["bias_logits"]:
        logits = logits + w["lm_head.bias"]
    return cap(logits, s["logit_cap"])


def mean_loss(logits, targets):
    chosen = torch.log_softmax(logits, -1).gather(-1, targets[..., None])
    return -chosen.mean()


def learning_rate(step):
    t = TRAIN
    if step < t["warmup"]:
        return t["lr"] * (step + 1) / t["warmup"]
    r = (step - t["warmup"]) / (t["schedule_steps"] - t["warmup"])
    cosine = 0.5 * (1 + math.cos(math.pi * r))
    return t["lr"] * (t["min_lr_ratio"] + (1 - t["min_lr_ratio"]) * cosine)


def adamw(w, grads, m, v, step):
    """Decay on matrices only, times the scheduled rate; clipping as torch's clip_grad_norm_."""
    t = TRAIN
    norm = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
    clip = min(1.0, t["grad_clip"] / (norm + 1e-6))
    rate = learning_rate(step)
    for name, g in grads.items():
        g = g * clip
        m[name] = t["beta1"] * m[name] + (1 - t["beta1"]) * g
        v[name] = t["beta2"] * v[name] + (1 - t["beta2"]) * g * g
        mhat = m[name] / (1 - t["beta1"] ** (step + 1))
        vhat = v[name] / (1 - t["beta2"] ** (step + 1))
        decay = t["weight_decay"] if w[name].dim() == 2 else 0.0
        w[name] = w[name] - rate * (mhat / (torch.sqrt(vhat) + t["eps"]) + decay * w[name])
    return norm


def gradients(s, w, tokens, laser):
    leaves = {name: value.detach().clone().requires_grad_(True) for name, value in w.items()}
    logits = forward(s, leaves, tokens[:, :-1], laser)
    loss = mean_loss(logits, tokens[:, 1:])
    loss.backward()
    return logits.detach(), float(loss.detach()), {name: leaf.grad for name, leaf in leaves.items()}


def train(s, init, tokens, laser, out, prefix):
    w = {name: torch.from_numpy(value.astype(np.float64)) for name, value in init.items()}
    m = {name: torch.zeros_like(value) for name, value in w.items()}
    v = {name: torch.zeros_like(value) for name, value in w.items()}
    losses, norms = [], []
    for step in range(STEPS):
        logits, loss, grads = gradients(s, w, tokens[step], laser)
        if step == 0:
            out[prefix + "logits"] = logits.numpy().astype(np.float32)
            for name, g in grads.items():
                out[prefix + "grad." + name] = g.numpy().astype(np.float32)
        losses.append(loss)
        norms.append(adamw(w, grads, m, v, step))
    out[prefix + "loss"] = np.array(losses, np.float32)
    out[prefix + "grad_norm"] = np.array(norms, np.float32)
    for name, value in w.items():
        out[prefix + "final." + name] = value.numpy().astype(np.float32)
    return losses, norms


def check_against_transformers(s, init, tokens):
    """Logits and every gradient of the GPT-2 shape equal GPT2LMHeadModel's, of the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=s["V"], n_positions=s["T"], n_embd=s["C"], n_layer=s["L"], n_head=s["H"],
        n_inner=s["F"], activation_function="gelu_new", resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, layer_norm_epsilon=s["norm_eps"], attn_implementation="eager",
        bos_token_id=0, eos_token_id=0)).double()
    w = {name: torch.from_numpy(value.astype(np.float64)) for name, value in init.items()}
    absent = model.load_state_dict(w, strict=False)
    assert not absent.unexpected_keys and set(absent.missing_keys) <= {"lm_head.weight"}, absent
    model.tie_weights()
    theirs = model(tokens[0][:, :-1]).logits
    mean_loss(theirs, tokens[0][:, 1:]).backward()
    logits, _, grads = gradients(s, w, tokens[0], laser=False)
    assert (theirs - logits).abs().max() < 1e-12, "logits differ from GPT2LMHeadModel"
    for name, parameter in model.named_parameters():
        assert (parameter.grad - grads[name]).abs().max() < 1e-12, f"gradient of {name} differs"


def serialize(tensors, metadata):
    """safetensors; written here because the library's order of metadata is not fixed."""
    kinds = {"float32": "F32", "int64": "I64"}
    header, data = {"__metadata__": metadata}, b""
    for name in sorted(tensors):
        raw = np.ascontiguousarray(tensors[name]).tobytes()
        header[name] = {"dtype": kinds[str(tensors[name].dtype)],
                        "shape": list(tensors[name].shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def build(name, number):
    s = dict(UNMODIFIED, **SHAPES[name])
    seed = s.pop("seed", number)
    init = initial_weights(s, seed=100 + seed)
    rng = np.random.Generator(np.random.PCG64(200 + seed))
    batches = rng.integers(0, s["V"], (STEPS, s["B"], s["T"] + 1), dtype=np.int64)
    tokens = torch.from_numpy(batches)
    if name == "gpt2":
        check_against_transformers(s, init, tokens)
    integers = [s[k] for k in ("L", "C", "F", "H", "HD", "V", "T", "B")]
    integers += [STEPS, TRAIN["warmup"], TRAIN["schedule_steps"]]
    integers += [ACTS.index(s["act"]), POSITIONS.index(s["pos"])]
    integers += [s[k] for k in ("bias_attn", "bias_mlp", "bias_logits", "embed_scale",
                                "per_dim_scale", "qk_norm", "diff", "diff_plain")]
    reals = [s[k] for k in ("norm_eps", "attn_cap", "logit_cap")]
    reals += [TRAIN[k] for k in ("lr", "min_lr_ratio", "beta1", "beta2", "eps", "weight_decay",
                                 "grad_clip")]
    reals += [s["temperature"]]
    out = {"config.integers": np.array(integers, np.int64),
           "config.reals": np.array(reals, np.float32), "tokens": batches}
    for key, value in init.items():
        out["init." + key] = value
    for kind in ("standard", "laser"):
        losses, norms = train(s, init, tokens, kind == "laser", out, kind + ".")
        print(f"{name:6} {kind:8} losses {losses[0]:.6f} .. {losses[-1]:.6f}, gradient norms "
              f"{min(norms):.3f} .. {max(norms):.3f}")
    metadata = {"config": json.dumps({**s, **TRAIN}, sort_keys=True),
                "written_by": "dev/ref/model_ref.py"}
    return serialize(out, metadata)


def main():
    parser = argparse.ArgumentParser(description="write the fixtures of test_model.c")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "fixtures")
    parser.add_argument(
        "--check", action="store_true", help="compare with the files instead of writing them")
    args = parser.parse_args()
    for number, name in enumerate(SHAPES):
        path, content = args.out / f"{name}.safetensors", build(name, number)
        if args.check:
            if path.read_bytes() != content:
                sys.exit(f"{path} differs from what model_ref.py writes")
        else:
            args.out.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        print(f"{path}: {len(content)} bytes, {'as written' if args.check else 'written'}")


if __name__ == "__main__":
    main()
