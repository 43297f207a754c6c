"""Learners that fit themselves: exact ones, for what boosting makes of them to be computed."""

import numpy as np
import torch
from torch import nn


class LeastSquares(nn.Module):
    """A linear model in closed form."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def fit_samples(self, inputs, targets, weights):
        design = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
        solution = torch.linalg.lstsq(design, targets.reshape(len(targets), -1).double()).solution
        with torch.no_grad():
            self.linear.weight.copy_(solution[:-1].T)
            self.linear.bias.copy_(solution[-1])

    def forward(self, inputs):
        return self.linear(inputs.flatten(1))


class SklearnRegressor(nn.Module):
    """Any of scikit-learn's regressors."""

    def __init__(self, estimator):
        super().__init__()
        self.estimator = estimator

    def fit_samples(self, inputs, targets, weights):
        self.estimator.fit(inputs.numpy(), targets.numpy())

    def forward(self, inputs):
        found = self.estimator.predict(inputs.numpy())
        return torch.from_numpy(np.asarray(found)).float().reshape(len(inputs), -1)


class SklearnClassifier(nn.Module):
    """Any of scikit-learn's classifiers; puts out the logarithms of its probabilities."""

    def __init__(self, estimator, num_classes):
        super().__init__()
        self.estimator, self.num_classes = estimator, num_classes

    def fit_samples(self, inputs, targets, weights):
        # Weights that sum to 1, as scikit-learn gives them: some trees round them otherwise.
        self.estimator.fit(inputs.numpy(), targets.numpy(), weights.double().numpy() / len(targets))

    def forward(self, inputs):
        labels = torch.from_numpy(self.estimator.predict(inputs.numpy()))
        return nn.functional.one_hot(labels, self.num_classes).float()
