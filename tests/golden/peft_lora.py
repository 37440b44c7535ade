"""Golden LoRA checkpoints from the real `peft`, and the check that it reads ours (needs torch, peft and safetensors).

  peft_lora.py [DIR]          writes CASES into DIR, by default peft_lora/ beside this script: for each case the
                              checkpoint as peft saves it, and reference.safetensors, all in double
  peft_lora.py --check DIR    DIR holds a checkpoint that deltaw wrote and a reference.safetensors: loads the checkpoint
                              into peft and exits with 1 and a reason unless the same outputs come out

reference.safetensors: base.NAME.weight and .bias (before adaptation), x, y, dy (the gradient of the loss, sum(y * dy)),
dx, grad.KEY for each tensor of the checkpoint, merged.NAME.weight and .bias. Versions are in its metadata.
"""
import os
import platform
import sys
import warnings

import peft
import safetensors.torch
import torch

SHAPES = {"blocks.0.proj": (6, 10), "blocks.1.proj": (10, 8), "head": (8, 3)}  # name: (in, out)
TOKENS = 7
CASES = {
    "lora": dict(r=3, lora_alpha=6, target_modules=["proj", "head"]),
    "rslora": dict(r=4, lora_alpha=10, use_rslora=True, lora_bias=True, lora_dropout=0.25, target_modules=["proj"],
                   rank_pattern={"blocks.1.proj": 2}, alpha_pattern={"blocks.1.proj": 5}, modules_to_save=["head"]),
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

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block["proj"](x))
        return self.head(x)


def linears(model):
    return {name: module for name, module in model.named_modules() if name in SHAPES}


def make(directory, options):
    base = Mlp()
    tensors = {"base.%s.%s" % (name, kind): getattr(module, kind).detach().clone()
               for name, module in linears(base).items() for kind in ("weight", "bias")}
    model = peft.get_peft_model(base, peft.LoraConfig(**options), autocast_adapter_dtype=False).double().eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn_like(parameter) / 2)
    x = torch.randn(TOKENS, 6, dtype=torch.float64, requires_grad=True)
    y = model(x)
    dy = torch.randn_like(y)
    (y * dy).sum().backward()
    for name, parameter in trained.items():
        key = name.replace("modules_to_save.default.", "").replace(".default", "")
        tensors["grad." + key] = parameter.grad
    tensors.update(x=x.detach(), y=y.detach(), dy=dy, dx=x.grad)
    model.save_pretrained(directory)
    os.remove(os.path.join(directory, "README.md"))
    for name, module in linears(model.merge_and_unload()).items():
        tensors["merged.%s.weight" % name] = module.weight.detach()
        tensors["merged.%s.bias" % name] = module.bias.detach()
    versions = {"peft": peft.__version__, "torch": torch.__version__, "python": platform.python_version()}
    safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()},
                                os.path.join(directory, "reference.safetensors"), versions)


def check(directory):
    reference = safetensors.torch.load_file(os.path.join(directory, "reference.safetensors"))
    base = Mlp()
    base.load_state_dict({name[len("base."):]: t for name, t in reference.items() if name.startswith("base.")})
    config = peft.PeftConfig.from_pretrained(directory)
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = model.load_adapter(directory, "default", autocast_adapter_dtype=False)
    missing = [key for key in report.missing_keys if "lora" in key or "modules_to_save" in key]
    assert not missing and not report.unexpected_keys, (missing, report.unexpected_keys)
    x = reference["x"].clone().requires_grad_()
    y = model(x)
    (y * reference["dy"]).sum().backward()
    for what, got in (("y", y.detach()), ("dx", x.grad)):
        error = float((got - reference[what]).norm() / reference[what].norm())
        assert error < 1e-12, "%s differs by %g" % (what, error)
    print("peft %s reads %s" % (peft.__version__, directory))


def main(arguments):
    torch.manual_seed(20240)
    if arguments[:1] == ["--check"] and len(arguments) == 2:
        return check(arguments[1])
    target = arguments[0] if arguments else os.path.join(os.path.dirname(os.path.abspath(__file__)), "peft_lora")
    for name, options in CASES.items():
        make(os.path.join(target, name), options)


if __name__ == "__main__":
    main(sys.argv[1:])
