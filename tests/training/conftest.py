"""Fixtures of the tests of training."""

import pytest

from pipeline.storage import open_bucket
from pipeline.training import loop, train
from tests.support import toy


@pytest.fixture
def store(tmp_path, trained):
    """A store with the dataset and the features of the toy world, and no model."""
    store = open_bucket(str(tmp_path / "store"))
    toy.copy(trained.store, store, "datasets/", "features/")
    return store


@pytest.fixture
def scripted(monkeypatch):
    """Replace CIDEr on dev by given numbers, or exceptions; the result fills with the weights after each epoch.

    The losses on dev can be given, too.
    """

    def script(*scores, losses=()):
        models, seen, scores, losses = [], [], iter(scores), iter(losses)
        build, evaluate_loss = train.build, loop.evaluate_loss

        def build_and_keep(*args):
            models.append(build(*args))
            return models[-1]

        def cider(*_):
            seen.append(models[-1].get_weights())
            score = next(scores)
            if isinstance(score, BaseException):
                raise score
            return score

        def loss(model, batches):
            measured = evaluate_loss(model, batches)
            return next(losses, measured)

        monkeypatch.setattr(train, "build", build_and_keep)
        monkeypatch.setattr(loop, "evaluate_loss", loss)
        monkeypatch.setattr(loop, "dev_cider", cider)
        return seen

    return script
