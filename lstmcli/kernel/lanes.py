"""The loop over steps: every lane holds one running sequence, and takes the next one when its own ends.

So the tile stays full until there is no more work, instead of narrowing whenever a short sequence ends (as a batch of packed
sequences does), and no step past a sequence's length is ever visited. Units are the outer loop and lanes the inner one: a
panel of weights is read once a step for all lanes.
"""

from collections.abc import Callable

from numba.extending import register_jitable

from lstmcli.kernel.layout import BLOCK, GATES, LINE_BYTES, Argument, Column, Options, Shape, Sync, rounded_size
from lstmcli.kernel.memory import at, clear, copy, get, min_of, prefetch, put
from lstmcli.kernel.tile_calls import configuring, projection_call, rounding, tile_call
from lstmcli.kernel.waiting import add, now, publish, read, sleep, wait_for

COLUMNS = len(Column)
MOST_ARRIVALS = 1 << 30  # after which all meet anew, or a half of Sync.ARRIVED would overflow one day
LONGEST_LEAVE = 100_000_000  # ns, for which a thread that was late is left out


@register_jitable(inline="always")
def start_lane(call, table, lanes, lane, sequence, float_bytes, sums_step):  # type: ignore[no-untyped-def]
    """Put the first step of a sequence into an empty lane."""
    h = get(call, Argument.H_AT) + sequence * get(call, Argument.OUTPUTS) * float_bytes
    c = get(call, Argument.C_AT) + sequence * get(call, Argument.UNITS) * float_bytes
    x_row, y_row = get(at(get(call, Argument.X_STARTS_AT)), sequence), get(at(get(call, Argument.Y_STARTS_AT)), sequence)
    cells_step, products = get(call, Argument.CELLS_STEP), get(call, Argument.PRODUCTS_AT)
    x = get(call, Argument.X_AT) + x_row * get(call, Argument.X_STEP)
    put(table, Column.X * lanes + lane, x)
    put(table, Column.H * lanes + lane, h)
    put(table, Column.C * lanes + lane, c)
    put(table, Column.NEW_C * lanes + lane, get(call, Argument.CELLS_AT) + y_row * cells_step if cells_step != 0 else c)
    put(table, Column.Y * lanes + lane, get(call, Argument.Y_AT) + y_row * get(call, Argument.Y_STEP))
    put(table, Column.BIAS * lanes + lane, get(call, Argument.BIASES_AT))
    sums = products + get(at(x), 0) * sums_step if products != 0 else get(table, Column.HOME * lanes + lane)
    put(table, Column.SUMS * lanes + lane, sums)
    put(table, Column.FINAL_H * lanes + lane, h)
    put(table, Column.FINAL_C * lanes + lane, c)
    put(table, Column.LEFT * lanes + lane, get(at(get(call, Argument.LENGTHS_AT)), sequence))
    put(table, Column.READY * lanes + lane, 0)


@register_jitable(inline="always")
def clear_padding(call, table, lanes, lane):  # type: ignore[no-untyped-def]
    """Set the output rows past the sequence's length to zero."""
    length, y_step = get(table, Column.LEFT * lanes + lane), get(call, Argument.Y_STEP)
    clear(get(table, Column.Y * lanes + lane) + length * y_step, (get(call, Argument.PADDED) - length) * y_step)


@register_jitable(inline="always")
def advance_lane(call, table, lanes, lane, sums_step):  # type: ignore[no-untyped-def]
    """Go on to the next step of the same sequence."""
    y, c = get(table, Column.Y * lanes + lane), get(table, Column.NEW_C * lanes + lane)
    x, products = get(table, Column.X * lanes + lane) + get(call, Argument.X_STEP), get(call, Argument.PRODUCTS_AT)
    put(table, Column.X * lanes + lane, x)
    put(table, Column.H * lanes + lane, y)
    put(table, Column.C * lanes + lane, c)
    put(table, Column.NEW_C * lanes + lane, c + get(call, Argument.CELLS_STEP))
    put(table, Column.Y * lanes + lane, y + get(call, Argument.Y_STEP))
    put(table, Column.LEFT * lanes + lane, get(table, Column.LEFT * lanes + lane) - 1)
    put(table, Column.READY * lanes + lane, get(table, Column.READY * lanes + lane) - 1)
    sums = products + get(at(x), 0) * sums_step if products != 0 else get(table, Column.SUMS * lanes + lane) + sums_step
    put(table, Column.SUMS * lanes + lane, sums)


@register_jitable(inline="always")
def share_rows(count, most):  # type: ignore[no-untyped-def]
    """Share rows out evenly among blocks of at most so many: return how many each has."""
    blocks = (count + most - 1) // most
    return (count + blocks - 1) // blocks


@register_jitable(inline="always")
def retire_lane(table, lanes, lane, last):  # type: ignore[no-untyped-def]
    """Empty a lane: the sequence of lane `last` moves into it. The two lanes exchange the memory that they own."""
    home, hidden = get(table, Column.HOME * lanes + lane), get(table, Column.HIDDEN * lanes + lane)
    for column in range(COLUMNS):
        put(table, column * lanes + lane, get(table, column * lanes + last))
    put(table, Column.HOME * lanes + last, home)
    put(table, Column.HIDDEN * lanes + last, hidden)


def define(shape: Shape, options: Options) -> Callable[..., None]:
    """Return the kernel for one tile shape and one kind of cell, as Numba compiles it with compiled.SIGNATURE."""
    tile_of, projection_of = tile_call(shape, options), projection_call(shape, options)
    width, half, rows, size, projected = shape.width, shape.half, shape.rows, shape.bits // 8, options.projection
    row_bytes, k_bytes = GATES * width * size, shape.together * width * size  # of a panel, and of a group of gates in it
    rounds, round_row, together = options.bfloat16, rounding(shape), BLOCK
    rounded_bytes, amx, configure = rounded_size(shape), shape.amx, configuring(shape)

    def lstm(call, thread):  # type: ignore[no-untyped-def]
        """Run one cell over the sequences that the table `call` names (see layout.Argument), as thread number `thread`.

        Threads take whole sequences, in THREADS hands that are dealt out; a thread that comes late finds none left. Where
        SHARERS > 1, they run all sequences together, each a part of the units. Thread 0 then begins alone. The others join it
        between two steps, and when it has had to wait for long, it sends them away for a while.
        """
        inputs, units, outputs = get(call, Argument.INPUTS), get(call, Argument.UNITS), get(call, Argument.OUTPUTS)
        lanes, ahead, count = get(call, Argument.LANES), get(call, Argument.AHEAD), get(call, Argument.COUNT)
        threads, sharers = get(call, Argument.THREADS), get(call, Argument.SHARERS)
        order, sync = at(get(call, Argument.ORDER_AT)), get(call, Argument.SYNC_AT)
        x_step, cells_step = get(call, Argument.X_STEP), get(call, Argument.CELLS_STEP)
        fetches, biases, products = get(call, Argument.FETCHES), get(call, Argument.BIASES_AT), get(call, Argument.PRODUCTS_AT)
        is_ahead = ahead + products  # not 0 for either
        scratches, scratch_step = get(call, Argument.SCRATCH_AT), get(call, Argument.SCRATCH_STEP)
        arrived = at(sync + Sync.ARRIVED)
        slots = lanes * ahead
        panels, columns = (units + width - 1) // width, (outputs + GATES * width - 1) // (GATES * width)
        half_unit = (panels - 1) * width if 0 < units % width <= half else -1
        panel_bytes, projection_bytes = (inputs + outputs) * row_bytes, units * row_bytes
        x_bytes, rounded_step = 0, get(call, Argument.ROUNDED_STEP)
        if rounds:  # two weights in a word, and rows that are filled up
            x_padded = (inputs + together - 1) // together * together
            h_padded, h_hidden = (outputs + together - 1) // together * together, (units + together - 1) // together * together
            x_bytes = x_padded * rounded_bytes
            panel_bytes, projection_bytes = (x_padded + h_padded) // 2 * row_bytes, h_hidden // 2 * row_bytes
        sums_step = panels * row_bytes
        block, span, configured = rows, rows, 0  # of a tile with AMX: its rows are one block or two

        hand = thread if sharers > 1 else add(at(sync + Sync.HANDS), 1)
        while hand < threads:
            scratch = scratches + hand * scratch_step
            table = at(scratch)
            coming = at(scratch + 8 * COLUMNS * lanes)  # a second table, for the steps whose input products are computed now
            sums = (scratch if sharers == 1 else scratches) + 8 * COLUMNS * (lanes + slots)  # of all that share
            hidden = get(call, Argument.HIDDEN_AT) + hand * get(call, Argument.HIDDEN_STEP)
            rounded = scratch + 8 * COLUMNS * (lanes + slots) + slots * sums_step  # of each thread, also where they share
            if amx:
                rounded = (rounded + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES
            for lane in range(lanes):
                put(table, Column.HOME * lanes + lane, sums + lane * ahead * sums_step)
                put(table, Column.HIDDEN * lanes + lane, hidden + lane * units * size)

            active, room, taken, steps = 0, lanes, 0, 0
            crew, joins, joining, met, began, lost = 1, 0, 0, 0, 0, 0  # crew: threads that compute this step, 1 or SHARERS
            while True:
                waited = 0
                if sharers > 1 and thread > 0 and crew == 1:
                    # Join thread 0 before its next step.
                    add(at(sync + Sync.WAITING), 1)
                    wait_for(at(sync + Sync.JOINS), joins + 1)
                    joins = get(at(sync + Sync.JOINS), 0)
                    if joins < 0:
                        break
                    active, room = get(at(sync + Sync.ACTIVE), 0), get(at(sync + Sync.ROOM), 0)
                    taken, steps = get(at(sync + Sync.TAKEN), 0), get(at(sync + Sync.STEPS), 0)
                    for word in range(COLUMNS * lanes):
                        put(table, word, get(at(scratches), word))
                    crew, joining = sharers, 1
                else:
                    # Empty lanes take the next sequences.
                    while active < room:
                        turn = taken
                        if sharers == 1:  # dealt out at first, or the thread that comes first would take all the longest ones
                            turn = taken * threads + hand
                            if taken >= lanes:
                                turn = lanes * threads + add(at(sync + Sync.NEXT), 1)
                        taken += 1
                        if turn >= count:
                            room = 0
                            break
                        start_lane(call, table, lanes, active, get(order, turn), size, sums_step)
                        if get(call, Argument.PADDED) > 0 and (hand == 0 or sharers == 1):
                            clear_padding(call, table, lanes, active)
                        active += 1
                    if active == 0:
                        break
                    if crew < sharers and read(at(sync + Sync.WAITING)) == (joins + 1) * (sharers - 1):
                        joins, crew, joining = joins + 1, sharers, 1
                        publish(arrived, 0)
                        put(at(sync + Sync.ACTIVE), 0, active)
                        put(at(sync + Sync.ROOM), 0, room)
                        put(at(sync + Sync.TAKEN), 0, taken)
                        put(at(sync + Sync.STEPS), 0, steps)
                        publish(at(sync + Sync.JOINS), joins)
                if joining > 0:  # none goes on before all others have taken over the lanes
                    joining, met = 0, sharers
                    add(arrived, 1)
                    wait_for(arrived, met)
                    began = now()
                share = thread if crew > 1 else 0
                first_panel, end_panel = panels * share // crew, panels * (share + 1) // crew

                # The input products of some steps at once: the rows of a tile are then steps as well as lanes.
                coming_rows = 0
                for lane in range(active if ahead > 0 else 0):
                    if get(table, Column.READY * lanes + lane) > 0:
                        continue
                    # Up to the next multiple of `ahead`, so that all lanes need new products at the same step. But a thread
                    # 0 that is alone leaves what it can to the others, who come at any moment: they are half of the work.
                    home, ready = get(table, Column.HOME * lanes + lane), get(table, Column.LEFT * lanes + lane)
                    ready = min_of(ready, ahead - steps % ahead)
                    if crew < sharers:
                        ready = min_of(ready, steps + 1)
                    for k in range(ready):
                        put(coming, Column.X * slots + coming_rows, get(table, Column.X * lanes + lane) + k * x_step)
                        put(coming, Column.BIAS * slots + coming_rows, biases)
                        put(coming, Column.SUMS * slots + coming_rows, home + k * sums_step)
                        if rounds:
                            row = rounded + (lanes + coming_rows) * rounded_step
                            put(coming, Column.ROUNDED * slots + coming_rows, row)
                            round_row(row, get(coming, Column.X * slots + coming_rows), inputs)
                        coming_rows += 1
                    put(table, Column.SUMS * lanes + lane, home)
                    put(table, Column.READY * lanes + lane, ready)
                if amx and coming_rows > 0:
                    block = share_rows(coming_rows, rows)
                    span = 2 * block
                    if block != configured:
                        configure(block)
                        configured = block
                pace = k_bytes * span // coming_rows if fetches > 0 and span < coming_rows else 0
                for panel in range(first_panel, end_panel if coming_rows > 0 else 0):
                    weights, unit = get(call, Argument.PANELS_AT) + panel * panel_bytes, panel * width
                    far = panel_bytes if panel + 1 < end_panel else (first_panel - panel) * panel_bytes
                    first, turn = 0, 0
                    while first < coming_rows:
                        tile_rows = min_of(span, coming_rows - first)
                        tile_of(tile_rows, block, call, weights, coming, slots, first, far, turn, pace, unit, half_unit, 0, 1)
                        first, turn = first + span, turn + 1

                if rounds:
                    for lane in range(active):
                        row = rounded + lane * rounded_step
                        put(table, Column.ROUNDED * lanes + lane, row)
                        if ahead == 0:
                            round_row(row, get(table, Column.X * lanes + lane), inputs)
                        round_row(row + x_bytes, get(table, Column.H * lanes + lane), outputs)

                # One step of all lanes.
                if amx:
                    block = share_rows(active, rows)
                    span = 2 * block
                    if block != configured:
                        configure(block)
                        configured = block
                pace = k_bytes * span // active if fetches > 0 and span < active else 0
                for panel in range(first_panel, end_panel):
                    weights, unit = get(call, Argument.PANELS_AT) + panel * panel_bytes, panel * width
                    far = panel_bytes if panel + 1 < end_panel else (first_panel - panel) * panel_bytes
                    first, turn = 0, 0
                    while first < active:
                        tile_rows = min_of(span, active - first)
                        tile_of(
                            tile_rows, block, call, weights, table, lanes, first, far, turn, pace, unit, half_unit, is_ahead, 0
                        )
                        for lane in range(first, first + tile_rows if products != 0 and panel + 1 < end_panel else first):
                            coming_sums = get(table, Column.SUMS * lanes + lane) + (panel + 1) * row_bytes
                            for line in range(0, row_bytes, LINE_BYTES):
                                prefetch(coming_sums + line)
                        first, turn = first + span, turn + 1
                if projected:
                    if crew > 1:
                        met += crew
                        add(arrived, 1)
                        since = wait_for(arrived, met)
                        waited = now() - since if since > 0 else 0
                    if rounds:
                        for lane in range(active):
                            row = get(table, Column.ROUNDED * lanes + lane)
                            round_row(row, get(table, Column.HIDDEN * lanes + lane), units)
                    for panel in range(columns * share // crew, columns * (share + 1) // crew):
                        weights, column = get(call, Argument.PROJECTION_AT) + panel * projection_bytes, panel * GATES * width
                        first = 0
                        while first < active:
                            projection_of(min_of(span, active - first), block, call, weights, table, lanes, first, column)
                            first += span

                # The step is over.
                steps += 1
                if crew > 1:
                    met += crew
                    if thread > 0:
                        add(arrived, 1)
                        wait_for(arrived, met)
                    else:
                        # Thread 0 says at which meeting the others leave: none of them gets past that before it is there.
                        add(arrived, (met << 32) + 1 if lost > 0 or met > MOST_ARRIVALS else 1)
                        since = wait_for(arrived, met)
                        ended = now()
                        waited += ended - since if since > 0 else 0
                        if 2 * waited > ended - began:  # its own part took less
                            lost = waited
                            put(at(sync + Sync.LOST), 0, lost)
                        began = ended
                    if read(arrived) >> 32 == met:
                        crew, lost = 1, 0
                        if thread > 0:
                            # So that what is lost to waiting stays a small part of the time.
                            sleep(min_of(8 * joins * get(at(sync + Sync.LOST), 0), LONGEST_LEAVE))
                            continue
                lane = 0
                while lane < active:
                    if get(table, Column.LEFT * lanes + lane) > 1:
                        advance_lane(call, table, lanes, lane, sums_step)
                        if products != 0:
                            coming_sums = get(table, Column.SUMS * lanes + lane) + first_panel * row_bytes
                            for line in range(0, row_bytes, LINE_BYTES):
                                prefetch(coming_sums + line)
                        lane += 1
                        continue
                    if hand == 0 or sharers == 1:
                        y, c = get(table, Column.Y * lanes + lane), get(table, Column.NEW_C * lanes + lane)
                        copy(get(table, Column.FINAL_H * lanes + lane), y, outputs * size)
                        if cells_step != 0:
                            copy(get(table, Column.FINAL_C * lanes + lane), c, units * size)
                    active -= 1
                    retire_lane(table, lanes, lane, active)

            hand = threads
            if sharers == 1:
                add(at(sync + Sync.DONE), 1)
                hand = add(at(sync + Sync.HANDS), 1)

        configure(0)
        # The caller of thread 0 owns the sequences: it ends when no other thread works on them.
        if thread == 0 and sharers > 1:
            publish(at(sync + Sync.JOINS), -1)
        elif thread == 0 and threads > 1:
            wait_for(at(sync + Sync.DONE), threads)

    return lstm
