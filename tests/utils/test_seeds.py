from delta_transfer.utils.seeds import derive_seed


def test_the_same_on_every_machine() -> None:
    assert derive_seed(0, "order", 3) == derive_seed(0, "order", 3)
    assert derive_seed(0, "order", 0) == 6942163024847554866


def test_every_part_counts_and_few_collide() -> None:
    seeds = {
        derive_seed(seed, purpose, epoch, index) % 2**32  # what torch's generator uses
        for seed in range(3)
        for purpose in ("order", "augmentation")
        for epoch in range(5)
        for index in range(50)
    }
    assert len(seeds) == 3 * 2 * 5 * 50
    assert derive_seed(1, "a", 11) != derive_seed(11, "a", 1) != derive_seed(1, "a", 1, 1)


def test_fits_what_torch_takes() -> None:
    assert all(0 <= derive_seed(seed) < 2**64 for seed in range(100))
