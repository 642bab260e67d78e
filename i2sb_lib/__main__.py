from i2sb_lib.cli import main

if __name__ == "__main__":
    main()
