"""The plain way to train a DCGAN in PyTorch, as its DCGAN example does it: the yardstick of two benchmarks.

float32, contiguous tensors, a ``DataLoader``, separate passes for real and generated images, binary
cross-entropy with labels of ones and zeros, Adam with learning rate 2e-4 and β = (0.5, 0.999), no moving
average.
"""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

import ganprune as gp


class ImageDataset(Dataset):
    """Images as torchvision's data sets give them: a picture object, turned into a tensor on demand."""

    def __init__(self, split: gp.data.Split) -> None:
        self.images = split.images.cpu()
        self.transform = Compose([ToTensor(), Normalize((0.5,), (0.5,))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index, 0].numpy())), 0


def loader(dataset: Dataset, batch_size: int, seed: int = 0) -> DataLoader:
    """A shuffling loader; batches are whole, so that every step is the same work."""
    order = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=True, generator=order)


def steps(gan: gp.GAN, batches: DataLoader, latent_dim: int, seed: int = 0) -> Iterator[None]:
    """Trains the GAN's two networks in place, without end; yields after each step."""
    generator, discriminator, device = gan.generator.train(), gan.discriminator.train(), gan.device
    criterion = nn.BCEWithLogitsLoss()
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    noise = torch.Generator(device=device).manual_seed(seed)
    while True:
        for images, _ in batches:
            real = images.to(device)
            ones = torch.ones(len(real), device=device)
            zeros = torch.zeros(len(real), device=device)

            discriminator.zero_grad()
            criterion(discriminator(real), ones).backward()
            fake = generator(torch.randn(len(real), latent_dim, device=device, generator=noise))
            criterion(discriminator(fake.detach()), zeros).backward()
            optimizer_d.step()

            generator.zero_grad()
            criterion(discriminator(fake), ones).backward()
            optimizer_g.step()
            yield
