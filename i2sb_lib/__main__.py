from i2sb_lib.cli import main

main()
