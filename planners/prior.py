"""A search narrowed by a guess: the product of two Gaussians over action sequences."""

from torch import Tensor


def product_of_gaussians(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of the normalised product of two diagonal Gaussians of one shape.

    The precisions 1 / std^2 add up and weigh the means (PRISM, arXiv 2606.07974). A std of +inf in one of them says
    nothing about its entry: there the other Gaussian remains. Raises ValueError when the shapes differ.
    """
    shapes = [tuple(x.shape) for x in (mean, std, other_mean, other_std)]
    if len(set(shapes)) != 1:
        raise ValueError(f"two Gaussians over actions of shapes {shapes} have no product: give all four one (B, H, A)")
    precision, other_precision = std.square().reciprocal(), other_std.square().reciprocal()
    total = precision + other_precision
    return (precision * mean + other_precision * other_mean) / total, total.rsqrt()
