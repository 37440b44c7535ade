"""Golden checkpoints from the real `peft`, and the check that it reads ours (needs torch, peft and safetensors).

  peft_methods.py [DIR]          writes CASES into DIR, by default peft_methods/ beside this script: for each case the
                                 checkpoint as peft saves it, and reference.safetensors, all in double
  peft_methods.py --check DIR    DIR holds a checkpoint that deltaw wrote and a reference.safetensors: loads the
                                 checkpoint into peft and exits with 1 and a reason unless the same outputs come out

reference.safetensors: base.NAME.weight and .bias (before adaptation), x, y, dy (the gradient of the loss, sum(y * dy)),
dx, merged.NAME.weight and .bias, and for each trained tensor of the checkpoint grad.KEY, adamw.KEY (its value after
STEPS of ADAMW with that loss); for methods with a penalty of their own penalized.KEY (the gradient with it); for
AdaLoRA allocated.KEY (the value after total_step steps with the penalty, each followed by its allocation).
Versions are in its metadata.

Two things of peft are set right, as double shows them: KaSA's cut of the base and its penalty are computed in float, here
in double; and AdaLoRA's count of ranks, a constant, becomes a trained parameter where the base is not float.
"""
import contextlib
import json
import os
import platform
import sys
import types
import unittest.mock
import warnings
import zlib

import peft
import safetensors.torch
import torch

SHAPES = {"blocks.0.proj": (6, 10), "blocks.1.proj": (10, 8), "blocks.2.proj": (8, 8), "head": (8, 3)}  # (in, out)
TOKENS = 7
STEPS = 3
ADAMW = dict(lr=0.02, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
LINEAR = ["proj", "head"]
PRUNED = {"blocks.0.proj.lora_E": [True, False, True], "blocks.1.proj.lora_E": [False, False, True],
          "blocks.2.proj.lora_E": [True, True, True], "head.lora_E": [False, False, False]}
CASES = {
    "lora": lambda: peft.LoraConfig(r=3, lora_alpha=6, target_modules=LINEAR),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=10, use_rslora=True, lora_bias=True, lora_dropout=0.25,
                                      target_modules=["proj"], rank_pattern={"blocks.1.proj": 2},
                                      alpha_pattern={"blocks.1.proj": 5}, modules_to_save=["head"]),
    "dora": lambda: peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=LINEAR),
    "dora_patterns": lambda: peft.LoraConfig(r=4, lora_alpha=10, use_dora=True, use_rslora=True, lora_dropout=0.25,
                                             target_modules=["proj"], rank_pattern={"blocks.1.proj": 2},
                                             alpha_pattern={"blocks.1.proj": 5}, modules_to_save=["head"]),
    "vera": lambda: peft.VeraConfig(r=5, target_modules=LINEAR),
    "vera_drawn": lambda: peft.VeraConfig(r=4, projection_prng_key=5_000_000_017, save_projection=False, d_initial=0.3,
                                          vera_dropout=0.5, target_modules=["proj"], modules_to_save=["head"]),
    "randlora": lambda: peft.RandLoraConfig(r=3, randlora_alpha=7, target_modules=LINEAR),
    "randlora_pair": lambda: peft.RandLoraConfig(r=2, randlora_alpha=4, randlora_dropout=0.5, modules_to_save=["head"],
                                                 target_modules=["blocks.0.proj", "blocks.2.proj"]),
    "randlora_sparse": lambda: peft.RandLoraConfig(r=3, randlora_alpha=6, sparse=True, projection_prng_key=3,
                                                   target_modules=LINEAR),
    "randlora_drawn": lambda: peft.RandLoraConfig(r=3, randlora_alpha=6, sparse=True, projection_prng_key=3,
                                                  save_projection=False, target_modules=LINEAR),
    "randlora_very_sparse": lambda: peft.RandLoraConfig(r=4, randlora_alpha=2, very_sparse=True, projection_prng_key=11,
                                                        save_projection=False, target_modules=LINEAR),
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=5, total_step=6, tinit=1, tfinal=2,
                                          orth_reg_weight=0.25, target_modules=LINEAR),
    "adalora_pruned": lambda: peft.AdaLoraConfig(init_r=3, target_r=1, lora_alpha=4, total_step=6, tfinal=2,
                                                 rank_pattern=PRUNED, target_modules=LINEAR),
    "kasa": lambda: peft.LoraConfig(r=2, lora_alpha=3, kasa_config=peft.KasaConfig(beta=0.5, gamma=0.25),
                                    target_modules=LINEAR),
}


class Mlp(torch.nn.Module):
    """Linear layers at the names of SHAPES, tanh between them."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList()
        for name, (fan_in, fan_out) in SHAPES.items():
            linear = torch.nn.Linear(fan_in, fan_out)
            if name == "head":
                self.head = linear
            else:
                self.blocks.append(torch.nn.ModuleDict({"proj": linear}))
        self.double()

    def forward(self, x, dy=None):
        for block in self.blocks:
            x = torch.tanh(block["proj"](x))
        y = self.head(x)
        return y if dy is None else types.SimpleNamespace(loss=(y * dy).sum())


def linears(model):
    return {name: module for name, module in model.named_modules() if name in SHAPES}


@contextlib.contextmanager
def kasa_in_double(config):
    """peft computes KaSA's SVD and penalty in float whatever the type of the model."""
    if not getattr(config, "kasa_config", None):
        yield
        return
    with unittest.mock.patch.object(torch, "float32", torch.float64), \
            unittest.mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def adapt(base, config):
    with kasa_in_double(config):
        model = peft.get_peft_model(base, config, autocast_adapter_dtype=False).double().eval()
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)
    return model


def as_saved(model, values):
    """`values`, a tensor for each trained parameter, by the keys of the checkpoint and cut to the ranks it keeps."""
    state = {**dict.fromkeys(model.state_dict()), **values}
    return {key: value for key, value in peft.get_peft_model_state_dict(model, state).items() if value is not None}


def gradients(model, trained, loss):
    model.zero_grad()
    loss.backward()
    return as_saved(model, {name: parameter.grad.clone() for name, parameter in trained.items()})


def penalized(model, config):
    """The loss with the method's own penalty as a function of x and dy; None for methods without one."""
    if config.peft_type == "ADALORA" and config.rank_pattern is None:
        return lambda x, dy: model.base_model(x, dy).loss  # a PeftModel without a task type would leave the penalty out
    if getattr(config, "kasa_config", None):
        def loss(x, dy):
            with kasa_in_double(config):
                return (model(x) * dy).sum() + model.base_model._get_kasa_loss()
        return loss
    return None


def train(trained, steps, loss, after_step=lambda step: None):
    """The trained parameters after so many steps, by the keys of the checkpoint; the model is as before."""
    initial = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), **ADAMW)
    for step in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        after_step(step)
    values = {name: p.detach().clone() for name, p in trained.items()}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(initial[name])
    return values


def allocate(model, trained, loss):
    config = model.peft_config["default"]
    values = train(trained, config.total_step, loss, lambda step: model.base_model.update_and_allocate(step + 1))
    config.rank_pattern = None  # all ranks, also those that are zero
    return as_saved(model, values)


def make(directory, config):
    base = Mlp()
    tensors = {"base.%s.%s" % (name, kind): getattr(module, kind).detach().clone()
               for name, module in linears(base).items() for kind in ("weight", "bias")}
    model = adapt(base, config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    pruned = config.rank_pattern or {} if config.peft_type == "ADALORA" else {}

    def hold(step=None):
        if pruned:
            model.base_model.rankallocator.mask_using_rank_pattern(model.base_model.model, pruned)

    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn_like(parameter) / 2)
    hold()

    x = torch.randn(TOKENS, 6, dtype=torch.float64, requires_grad=True)
    y = model(x)
    dy = torch.randn_like(y)
    for key, gradient in gradients(model, trained, (y * dy).sum()).items():
        tensors["grad." + key] = gradient
    tensors.update(x=x.detach().clone(), y=y.detach(), dy=dy, dx=x.grad)
    x = x.detach()
    keyed = {"adamw": as_saved(model, train(trained, STEPS, lambda: (model(x) * dy).sum(), hold))}
    penalized_loss = penalized(model, config)
    if penalized_loss:
        keyed["penalized"] = gradients(model, trained, penalized_loss(x, dy))
    model.save_pretrained(directory)
    os.remove(os.path.join(directory, "README.md"))
    if config.peft_type == "ADALORA" and penalized_loss:
        keyed["allocated"] = allocate(model, trained, lambda: penalized_loss(x, dy))
    for what, values in keyed.items():
        tensors.update({what + "." + key: value for key, value in values.items()})
    for name, module in linears(model.merge_and_unload()).items():
        tensors["merged.%s.weight" % name] = module.weight.detach()
        tensors["merged.%s.bias" % name] = module.bias.detach()
    versions = {"peft": peft.__version__, "torch": torch.__version__, "python": platform.python_version()}
    safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()},
                                os.path.join(directory, "reference.safetensors"), {"versions": json.dumps(versions)})


def check(directory):
    reference = safetensors.torch.load_file(os.path.join(directory, "reference.safetensors"))
    base = Mlp()
    base.load_state_dict({name[len("base."):]: t for name, t in reference.items() if name.startswith("base.")})
    config = peft.PeftConfig.from_pretrained(directory)
    model = adapt(base, config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Specified to not load vera_A and vera_B")
        report = model.load_adapter(directory, "default", autocast_adapter_dtype=False)
    adapters = ("lora_", "vera_", "randlora_", "modules_to_save")
    missing = [key for key in report.missing_keys if any(word in key for word in adapters)
               and not key.endswith((".randlora_A.default", ".randlora_B.default"))]  # copies, a layer each
    assert not missing and not report.unexpected_keys, (missing, report.unexpected_keys)
    x = reference["x"].clone().requires_grad_()
    y = model(x)
    (y * reference["dy"]).sum().backward()
    for what, got in (("y", y.detach()), ("dx", x.grad)):
        error = float((got - reference[what]).norm() / reference[what].norm())
        assert error < 1e-12, "%s differs by %g" % (what, error)
    print("peft %s reads %s" % (peft.__version__, directory))


def main(arguments):
    if arguments[:1] == ["--check"] and len(arguments) == 2:
        return check(arguments[1])
    if os.environ.get("PYTHONHASHSEED") != "0":  # peft writes sets, in the order of their hashes
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    target = arguments[0] if arguments else os.path.splitext(os.path.abspath(__file__))[0]
    for name, config in CASES.items():
        torch.manual_seed(zlib.crc32(name.encode()))
        make(os.path.join(target, name), config())


if __name__ == "__main__":
    main(sys.argv[1:])
