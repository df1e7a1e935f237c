"""LARS against its rule written as a loop over single numbers' tensors."""

import torch

from opticus.training.lars import LARS, TRUST


def test_lars_follows_its_rule():
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64)), torch.nn.Parameter(torch.randn(5, dtype=torch.float64)),
                  torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))]  # fmt: skip
    wanted = [p.detach().clone() for p in parameters]
    momenta = [torch.zeros_like(p) for p in wanted]
    optimiser = LARS([{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:]}], 0.5, momentum=0.9)
    for step in range(3):
        for group in optimiser.param_groups:
            group["lr"] = 0.5 / (step + 1)
        gradients = [torch.randn_like(p) for p in wanted]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        optimiser.step()
        for i, gradient in enumerate(gradients):
            update = gradient + (0.1 * wanted[i] if i == 0 else 0)
            if wanted[i].ndim > 1 and wanted[i].norm() > 0:
                update = update * (TRUST * wanted[i].norm() / update.norm())
            momenta[i] = 0.9 * momenta[i] + update
            wanted[i] = wanted[i] - 0.5 / (step + 1) * momenta[i]
        for parameter, value in zip(parameters, wanted):
            torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=1e-14)


def test_a_tensor_without_gradient_stays():
    parameter, other = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    optimiser = LARS([parameter, other], 1.0)
    parameter.grad = torch.ones(2, 2)
    optimiser.step()
    assert torch.equal(other, torch.ones(2, 2)) and not torch.equal(parameter, torch.ones(2, 2))
