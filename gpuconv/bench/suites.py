"""Lists of problems worth timing."""

DEFAULT = (
    "n1_h56w56_c64_k64_r3s3_p1",
    "n1_h28w28_c128_k128_r3s3_p1",
    "n8_h14w14_c256_k256_r3s3_p1",
    "n1_h1024w1024_c64_k64_r3s3_p1",
)
"""Three layers of a ResNet-50, and a picture whose columns, all at once, would take 2.3 GiB."""
