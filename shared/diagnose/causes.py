"""The causes that `diagnose` names: a closed list."""

import enum


class Cause(enum.StrEnum):
    """Why a step moves nothing, or not where it should.

    Each member is a string, equal to its own name, and carries what it means
    (``meaning``) and the chapter that explains it (``chapter``, a slug or None).
    """

    meaning: str
    chapter: str | None

    def __new__(cls, name: str, meaning: str, chapter: str | None) -> "Cause":
        """Make a member from its name, its meaning and its chapter."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning = meaning
        member.chapter = chapter
        return member

    healthy = (
        "healthy",
        "Nothing is wrong: the loop works, or is already where it can get.",
        None,
    )
    graph_detached = (
        "graph_detached",
        "The computation graph between the variable and the loss is cut "
        "(detach, .item(), numpy, re-created tensor, no-gradient block).",
        "disconnected_graph",
    )
    nondifferentiable_op = (
        "nondifferentiable_op",
        "A piecewise-constant operation (arg-max, rounding, threshold) stands "
        "between the variable and the loss.",
        "discontinuous_loss",
    )
    variable_not_used = (
        "variable_not_used",
        "The value that enters the loss does not depend on the current variable "
        "(stale copy, argument ignored).",
        "disconnected_graph",
    )
    non_leaf_variable = (
        "non_leaf_variable",
        "The tensor the user reads or updates is not the leaf (rebound by "
        "clamp, .to(), ...).",
        "disconnected_graph",
    )
    frozen_parameters = (
        "frozen_parameters",
        "The variables that should learn do not require gradients, or are "
        "masked from them, by mistake.",
        "disconnected_graph",
    )
    unregistered_parameters = (
        "unregistered_parameters",
        "Parameters exist and get gradients, but the module does not list them "
        "(plain list or dict).",
        "disconnected_graph",
    )
    optimizer_holds_other_tensors = (
        "optimizer_holds_other_tensors",
        "The optimizer holds tensors other than those used in the forward pass.",
        "disconnected_graph",
    )
    step_missing = (
        "step_missing",
        "The update is never applied: optimizer.step() is not called for these "
        "variables.",
        "loop_order",
    )
    zero_grad_before_step = (
        "zero_grad_before_step",
        "Gradients are cleared between backward and step.",
        "loop_order",
    )
    zero_grad_missing = (
        "zero_grad_missing",
        "Gradients are never cleared and pile up.",
        "accumulated_gradients",
    )
    update_written_to_copy = (
        "update_written_to_copy",
        "The optimizer computes the right update but writes it to a temporary copy.",
        "disconnected_graph",
    )
    lr_zero = (
        "lr_zero",
        "The learning rate is (numerically) zero.",
        "learning_rate",
    )
    step_too_small = (
        "step_too_small",
        "Steps are far smaller than the problem needs (learning rate, Adam "
        "epsilon, loss scale).",
        "learning_rate",
    )
    lr_too_large = (
        "lr_too_large",
        "Steps overshoot; the loss grows or blows up.",
        "learning_rate",
    )
    update_below_precision = (
        "update_below_precision",
        "Each update is under half the spacing of the stored number and rounds away.",
        "numerical_precision",
    )
    fp16_underflow = (
        "fp16_underflow",
        "Gradients are too small for half precision and become zero in the "
        "backward pass.",
        "numerical_precision",
    )
    nan_gradient = (
        "nan_gradient",
        "The gradient is NaN or infinite at the current point.",
        "exploding_loss",
    )
    saturated_activation = (
        "saturated_activation",
        "Softmax, sigmoid or tanh sits on its flat part.",
        "saturated_loss",
    )
    vanishing_gradient = (
        "vanishing_gradient",
        "The product of many small derivatives leaves the early variables "
        "without gradient.",
        "vanishing_depth",
    )
    dead_relu = (
        "dead_relu",
        "A rectifier is off for every example, so nothing passes back.",
        "exploding_loss",
    )
    clamped_at_bound = (
        "clamped_at_bound",
        "The variable (or all of what it feeds) is outside, or on the closed "
        "edge of, a clamp.",
        "input_parameterization",
    )
    out_of_support = (
        "out_of_support",
        "The objective is locally flat because the thing being moved does not "
        "touch what it should match.",
        "input_optimization",
    )
    constant_objective = (
        "constant_objective",
        "The objective does not depend on the variable mathematically (softmax "
        "of one value, sum of a normalized vector).",
        "disconnected_graph",
    )
    stationary_not_minimum = (
        "stationary_not_minimum",
        "The gradient is exactly zero at a point that is not a minimum (product "
        "of zeros, collapsed embeddings).",
        "saddle_point",
    )
    symmetric_init = (
        "symmetric_init",
        "Units start identical and therefore stay identical.",
        "initialization",
    )
    double_softmax = (
        "double_softmax",
        "Probabilities are normalized a second time by the loss.",
        "silent_loss_bugs",
    )
    shape_broadcast = (
        "shape_broadcast",
        "Prediction and target shapes differ and are silently expanded against "
        "each other.",
        "silent_loss_bugs",
    )
    wrong_sign = (
        "wrong_sign",
        "The update goes the wrong way for what is wanted (score minimized, "
        "gradient added).",
        "silent_loss_bugs",
    )
    targets_masked_out = (
        "targets_masked_out",
        "The loss ignores all, or a whole class, of the targets.",
        "silent_loss_bugs",
    )
    labels_misaligned = (
        "labels_misaligned",
        "Labels do not belong to the inputs they are paired with.",
        "silent_loss_bugs",
    )
    unnormalised_data = (
        "unnormalised_data",
        "Inputs are on a scale the network or step size cannot work with.",
        "confident_model",
    )
    weight_decay_dominates = (
        "weight_decay_dominates",
        "Regularization shrinks the weights faster than the data term can grow them.",
        "learning_rate",
    )
    at_minimum = (
        "at_minimum",
        "Information, not an alarm: the gradient is zero because nothing nearby "
        "is better (of the projected gradient, in a box).",
        "local_minimum",
    )
    saddle_point = (
        "saddle_point",
        "The gradient is (nearly) zero and some direction goes down; the named "
        "special case of stationary_not_minimum.",
        "saddle_point",
    )
    discontinuous_loss = (
        "discontinuous_loss",
        "The loss jumps; its derivative misses the jumps.",
        "discontinuous_loss",
    )
    runaway_loss = (
        "runaway_loss",
        "The loss falls as it should while what it is meant to measure gets "
        "worse (1/MSE).",
        "reciprocal_loss",
    )
    forward_collapse = (
        "forward_collapse",
        "All inputs give the same output, so no input-dependent gradient is left.",
        "forward_collapse",
    )
    gradient_noise = (
        "gradient_noise",
        "It moves at random: the batch gradient is noise compared with the full one.",
        "batch_size",
    )
