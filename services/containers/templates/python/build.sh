# shellcheck shell=sh disable=SC2164 # it is run by sh -eu, which ends at what fails
# Installs what the code in /code asks for and leaves the application in /var/tmp/app, its packages in .packages.
# Runs again at every start of the stack: what has not changed is left alone.
code=/code
[ ! -d "/code/$APP" ] || code=/code/$APP
cd "$code"
state=$({ python --version; find . -type f -exec sha256sum {} +; } | sort | sha256sum)
if [ "$state" = "$(cat /var/tmp/state 2>/dev/null)" ]; then
    echo "The code has not changed since it was built"
    exit 0
fi

rm -rf /var/tmp/next /var/tmp/old
mkdir /var/tmp/next
cp -R . /var/tmp/next
cd /var/tmp/next
rm -rf .packages
if [ -f requirements.txt ]; then
    python -m pip install --target .packages -r requirements.txt
elif [ -f pyproject.toml ]; then
    python -m pip install --target .packages .
fi

# Put into place by renaming: the application is there whole or not at all.
cd /var/tmp
rm -f state
[ ! -d app ] || mv app old
mv next app
echo "$state" >state
rm -rf old
echo "The application is built"
