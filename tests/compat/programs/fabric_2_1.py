"""A loop of one's own on Fabric 2.x: two models, accumulation, clipping, checkpoints by hand."""

import argparse
import hashlib
import os

import torch
from lightning_fabric import Fabric, seed_everything
from lightning_fabric.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Scorer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.GELU())
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.body(x))


def train(fabric, state, train_loader, args):
    model, optimizer, scheduler = state["model"], state["optimizer"], state["scheduler"]
    model.train()
    for batch_idx, (x, y) in enumerate(train_loader):
        is_accumulating = (batch_idx + 1) % args.accumulate != 0
        with fabric.no_backward_sync(model, enabled=is_accumulating):
            loss = nn.functional.mse_loss(model(x), y)
            fabric.backward(loss / args.accumulate)
        if not is_accumulating:
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            state["step"] += 1
            if state["step"] % 10 == 0:
                fabric.log_dict({"loss": loss.detach(), "lr": scheduler.get_last_lr()[0]}, step=state["step"])


@torch.no_grad()
def validate(fabric, model, val_loader):
    model.eval()
    losses = torch.stack([nn.functional.mse_loss(model(x), y) for x, y in val_loader])
    return fabric.all_reduce(losses.mean(), reduce_op="mean").item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--precision", default="bf16-mixed")
    args = parser.parse_args()

    fabric = Fabric(accelerator="cpu", devices=1, precision=args.precision, loggers=CSVLogger("logs", name="fabric"))
    fabric.launch()
    seed_everything(5)
    x = torch.randn(640, 6)
    y = (x[:, :3] * x[:, 3:]).sum(dim=1, keepdim=True)
    loaders = (
        DataLoader(TensorDataset(x[:512], y[:512]), 32, shuffle=True),
        DataLoader(TensorDataset(x[512:], y[512:]), 64),
    )
    train_loader, val_loader = fabric.setup_dataloaders(*loaders)

    with fabric.init_module():
        model = Scorer(64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=40, gamma=0.5)
    model, optimizer = fabric.setup(model, optimizer)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "step": 0}

    before = validate(fabric, model, val_loader)
    for epoch in range(args.epochs):
        train(fabric, state, train_loader, args)
        fabric.print(f"epoch {epoch}: {validate(fabric, model, val_loader):.6f}")
        if epoch == args.epochs - 2:
            fabric.save(os.path.join("checkpoints", "state.ckpt"), state)
    fabric.logger.finalize("success")
    print(f"val_loss: {before:.6f} -> {validate(fabric, model, val_loader):.6f}")
    print("weights:", digest(model))

    remainder = fabric.load(os.path.join("checkpoints", "state.ckpt"), state)
    print("restored:", state["step"], dict(remainder), f"{validate(fabric, model, val_loader):.6f}", digest(model))
    print("sum:", fabric.to_device(torch.ones(2)).sum().item(), fabric.is_global_zero, fabric.world_size)


def digest(model):
    return hashlib.sha256(b"".join(p.numpy().tobytes() for p in model.state_dict().values())).hexdigest()


if __name__ == "__main__":
    main()
