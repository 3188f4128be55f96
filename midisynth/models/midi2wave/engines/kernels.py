"""The loop over samples as plain functions of NumPy arrays, which numba compiles.

Nothing here imports numba: without it the functions run as they are, some thousand times slower.

What costs time is to fetch the weights, 1.2 MB for each step of the published decoder. They have one row for each
input, so that a product is a sum of scaled rows: every inner loop runs over outputs that lie side by side, and nothing
is summed across a vector register. Eight rows serve all streams before the next eight are fetched.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy import float32

#: tanh(x) = x P(x^2) / Q(x^2) up to this x, where it is 1 - 8e-8: the continued fraction x / (1 + x^2 / (3 + x^2 / (5
#: + ...))) to its twelfth term. Within 5e-7 in single precision; unlike calls of tanh, it leaves loops vectorisable.
LIMIT = float32(8.5)
P1, P2, P3 = float32(0.14492753623188406), float32(0.004968944099378882), float32(5.8116305255893354e-05)
P4, P5 = float32(2.374032077446624e-07), float32(2.466526833710778e-10)
Q1, Q2, Q3 = float32(0.4782608695652174), float32(0.031055900621118012), float32(0.0006102212051868803)
Q4, Q5, Q6 = float32(4.273257739403923e-06), float32(9.496128309786497e-09), float32(3.1622138893727926e-12)
ONE, HALF, ZERO = float32(1), float32(0.5), float32(0)


class Weights(NamedTuple):
    """Weights of a decoder, one row for each input; without skips, those of the head are empty.

    Attributes:
        table: [levels, R].
        taps: [layers, 2R, 2R], previous inputs first.
        bias: [layers, 2R].
        residual: [layers, R, R].
        residual_bias: [layers, R].
        skip: [layers * R, S].
        skip_bias: [S].
        hidden: [S, hidden].
        output: [hidden, outputs].
        gain: Of the residual stream.
        dilations: [layers].
        offsets: [layers], where the queue of each begins.
    """

    table: np.ndarray
    taps: np.ndarray
    bias: np.ndarray
    residual: np.ndarray
    residual_bias: np.ndarray
    skip: np.ndarray
    skip_bias: np.ndarray
    hidden: np.ndarray
    output: np.ndarray
    gain: np.float32
    dilations: np.ndarray
    offsets: np.ndarray


class Drawing(NamedTuple):
    """How codes are drawn, see `heads`.

    Attributes:
        levels: Number of codes.
        mixture: Outputs are a mixture of logistics.
        clamped: Its log scales are cut off at the smallest, and not squashed between it and 0.
        min_log_scale: The smallest.
        edge: Uniforms of logistics stay this far from 0 and 1.
        temperature: 0 takes the most probable.
        top_p: Share of the probability that is drawn from.
        guidance: How far the outputs of two passes of a stream are from the second towards the first.
    """

    levels: int
    mixture: bool
    clamped: bool
    min_log_scale: float
    edge: float
    temperature: float
    top_p: float
    guidance: np.float32


class Buffers(NamedTuple):
    """Memory of one step of streams; one that takes two passes counts as two.

    Attributes:
        pair: [streams, 2R] previous and current inputs of a layer.
        sums: [streams, 2R] before the gates.
        gated: [streams, R] behind them.
        all_gated: [streams, layers * R].
        residual: [streams, R].
        skip: [streams, S].
        hidden: [streams, hidden].
        output: [streams, outputs].
        probability: [outputs].
    """

    pair: np.ndarray
    sums: np.ndarray
    gated: np.ndarray
    all_gated: np.ndarray
    residual: np.ndarray
    skip: np.ndarray
    hidden: np.ndarray
    output: np.ndarray
    probability: np.ndarray


def buffers(streams: int, w: Weights) -> Buffers:
    """Memory for streams; its content is undefined."""
    layers, gates = w.bias.shape
    channels = gates // 2
    outputs = w.output.shape[1] if w.output.shape[1] else channels
    return Buffers(
        np.empty((streams, gates), float32),
        np.empty((streams, gates), float32),
        np.empty((streams, channels), float32),
        np.empty((streams, layers * channels), float32),
        np.empty((streams, channels), float32),
        np.empty((streams, w.skip.shape[1]), float32),
        np.empty((streams, w.hidden.shape[1]), float32),
        np.empty((streams, outputs), float32),
        np.empty(outputs, float32),
    )


def tanh(x: float32) -> float32:
    """Hyperbolic tangent, see `LIMIT`."""
    x = min(max(x, -LIMIT), LIMIT)
    y = x * x
    p = ONE + y * (P1 + y * (P2 + y * (P3 + y * (P4 + y * P5))))
    q = ONE + y * (Q1 + y * (Q2 + y * (Q3 + y * (Q4 + y * (Q5 + y * Q6)))))
    return x * p / q


def gate(sums: np.ndarray, gated: np.ndarray) -> None:
    """gated [R] = tanh of the first half of sums [2R] times the logistic function of the second."""
    channels = gated.shape[0]
    for channel in range(channels):
        gated[channel] = tanh(sums[channel]) * (HALF + HALF * tanh(HALF * sums[channels + channel]))


def add_product(inputs: np.ndarray, weights: np.ndarray, outputs: np.ndarray) -> None:
    """outputs [streams, columns] += inputs [streams, rows] @ weights [rows, columns]."""
    rows, columns = weights.shape
    whole = rows - rows % 8
    for row in range(0, whole, 8):
        for stream in range(inputs.shape[0]):
            x0, x1 = inputs[stream, row], inputs[stream, row + 1]
            x2, x3 = inputs[stream, row + 2], inputs[stream, row + 3]
            x4, x5 = inputs[stream, row + 4], inputs[stream, row + 5]
            x6, x7 = inputs[stream, row + 6], inputs[stream, row + 7]
            for column in range(columns):
                outputs[stream, column] += (
                    (x0 * weights[row, column] + x1 * weights[row + 1, column])
                    + (x2 * weights[row + 2, column] + x3 * weights[row + 3, column])
                ) + (
                    (x4 * weights[row + 4, column] + x5 * weights[row + 5, column])
                    + (x6 * weights[row + 6, column] + x7 * weights[row + 7, column])
                )
    for row in range(whole, rows):
        for stream in range(inputs.shape[0]):
            x0 = inputs[stream, row]
            for column in range(columns):
                outputs[stream, column] += x0 * weights[row, column]


def layers(w: Weights, b: Buffers, queues: np.ndarray, step: int, conditioning: np.ndarray, column: int) -> None:
    """Pass the current inputs, in the second half of `pair`, through all layers.

    Args:
        w: Weights.
        b: Buffers.
        queues: [streams, sum of dilations, R].
        step: Since the start of the streams.
        conditioning: [streams, columns, layers, 2R].
        column: The one to use.
    """
    streams, channels = b.gated.shape
    for layer in range(len(w.dilations)):
        position = w.offsets[layer] + step % w.dilations[layer]
        first = layer * channels
        for stream in range(streams):
            for channel in range(channels):
                b.pair[stream, channel] = queues[stream, position, channel]
                queues[stream, position, channel] = b.pair[stream, channels + channel]
            for channel in range(2 * channels):
                b.sums[stream, channel] = w.bias[layer, channel] + conditioning[stream, column, layer, channel]
        add_product(b.pair, w.taps[layer], b.sums)
        for stream in range(streams):
            gate(b.sums[stream], b.gated[stream])
            for channel in range(channels):
                b.all_gated[stream, first + channel] = b.gated[stream, channel]
                b.residual[stream, channel] = w.residual_bias[layer, channel] + b.pair[stream, channels + channel]
        add_product(b.gated, w.residual[layer], b.residual)
        for stream in range(streams):
            for channel in range(channels):
                b.pair[stream, channels + channel] = b.residual[stream, channel] * w.gain


def head(w: Weights, b: Buffers) -> None:
    """Fill `output` from what the layers left."""
    streams, channels = b.gated.shape
    if w.output.shape[1] == 0:
        for stream in range(streams):
            for channel in range(channels):
                b.output[stream, channel] = b.pair[stream, channels + channel]
        return
    for stream in range(streams):
        for channel in range(b.skip.shape[1]):
            b.skip[stream, channel] = w.skip_bias[channel]
    add_product(b.all_gated, w.skip, b.skip)
    b.hidden[:] = ZERO
    add_product(np.maximum(b.skip, ZERO), w.hidden, b.hidden)
    b.output[:] = ZERO
    add_product(np.maximum(b.hidden, ZERO), w.output, b.output)


def guide(first: np.ndarray, second: np.ndarray, guidance: float32) -> None:
    """Go from the outputs of the second pass towards those of the first, and beyond; the first holds the result."""
    for index in range(len(first)):
        first[index] = second[index] + guidance * (first[index] - second[index])


def softmax(logits: np.ndarray, temperature: float, top_p: float, probability: np.ndarray) -> float:
    """Fill `probability` with what is in proportion to the softmax of logits, and return the sum."""
    highest = logits.max()
    total = 0.0
    for index in range(len(logits)):
        probability[index] = math.exp((logits[index] - highest) / temperature)
        total += probability[index]
    if top_p >= 1:
        return total
    # The most probable ones one after the other, marked by their sign. There are few, and sorting would take longer.
    kept = 0.0
    while kept < top_p * total:
        best = probability.argmax()
        if probability[best] <= 0:
            break
        kept += probability[best]
        probability[best] = -probability[best]
    for index in range(len(probability)):
        probability[index] = max(-probability[index], ZERO)
    return kept


def inverse_cdf(probability: np.ndarray, count: int, total: float, uniform: float) -> int:
    """The first of the indices whose cumulative probability exceeds the uniform."""
    cumulative = 0.0
    for index in range(count):
        cumulative += probability[index]
        if cumulative > uniform * total:
            return index
    return count - 1


def draw(logits: np.ndarray, noise: np.ndarray, drawing: Drawing, probability: np.ndarray) -> int:
    """A code from the outputs of the decoder."""
    count = len(logits) // 3 if drawing.mixture else len(logits)
    if drawing.temperature == 0:
        chosen = logits[:count].argmax()
    else:
        temperature = 1.0 if drawing.mixture else drawing.temperature
        total = softmax(logits[:count], temperature, drawing.top_p, probability[:count])
        chosen = inverse_cdf(probability, count, total, noise[0])
    if not drawing.mixture:
        return chosen
    x = math.tanh(logits[count + chosen])
    if drawing.temperature != 0:
        scale = logits[2 * count + chosen]
        if drawing.clamped:
            log_scale = max(scale, drawing.min_log_scale)
        else:
            log_scale = drawing.min_log_scale / (1 + math.exp(-scale))
        u = min(max(noise[1], drawing.edge), 1 - drawing.edge)
        x += drawing.temperature * math.exp(log_scale) * (math.log(u) - math.log1p(-u))
    return int(np.rint((min(max(x, -1.0), 1.0) + 1) * ((drawing.levels - 1) / 2)))


def run(
    w: Weights,
    drawing: Drawing,
    queues: np.ndarray,
    current: np.ndarray,
    step: int,
    conditioning: np.ndarray,
    hop: int,
    noise: np.ndarray,
    teacher: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Carry out steps of streams, see `Engine.run`.

    Args:
        w: Weights.
        drawing: How codes are drawn.
        queues: [streams * passes, sum of dilations, R] past inputs of the layers, for one pass or two.
        current: [streams] codes that go in.
        step: Since the start of the streams.
        conditioning: [streams * passes, columns, layers, 2R].
        hop: Steps that share a column.
        noise: [streams, steps, draws].
        teacher: [streams, steps]; -1 where there is none.
        codes: [streams, steps], filled.
    """
    rows, streams, channels = len(queues), len(current), queues.shape[2]
    passes = rows // streams
    b = buffers(rows, w)
    for index in range(noise.shape[1]):
        for stream in range(streams):
            if teacher[stream, index] >= 0:
                current[stream] = teacher[stream, index]
            for row in range(stream * passes, (stream + 1) * passes):
                for channel in range(channels):
                    b.pair[row, channels + channel] = w.table[current[stream], channel]
        layers(w, b, queues, step + index, conditioning, index // hop)
        head(w, b)
        for stream in range(streams):
            row = stream * passes
            if passes == 2:
                guide(b.output[row], b.output[row + 1], drawing.guidance)
            current[stream] = draw(b.output[row], noise[stream, index], drawing, b.probability)
            codes[stream, index] = current[stream]
