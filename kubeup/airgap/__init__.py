"""Without the world outside: bundles, images, the mirror, programs and packages."""
