"""python -m durablestack.supervisor"""

from durablestack.supervisor.cli import main

if __name__ == "__main__":
    main()
