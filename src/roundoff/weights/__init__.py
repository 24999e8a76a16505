"""Two sets of weights, compared: on the disk in any format, of any size, or in memory.

The files, from what is read to what comes of it:

    checkpoint.py  names with shapes and dtypes, read in flat blocks
    pickles.py     an unpickler that executes nothing
    readers/       one file a format
    names.py       wrappers' prefixes, renamed tensors, the group of a name
    pairs.py       what stands beside what
    casts.py       is one side the other, cast to a narrower format?
    tensors.py     one pair of tensors, streamed
    heap.py        the values of many tensors in one heap: the pooled Wasserstein distance
    diff.py        `Diff`: tensors, groups, overall
    record.py      a `Diff` as plain JSON data
"""
