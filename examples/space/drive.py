"""Drive the page in a headless browser, as a visitor would: upload an image, attack, read both models' predictions.

    pip install selenium    # needs Chromium or Chrome and its driver (Debian: apt install chromium chromium-driver)
    python examples/space/drive.py                                      # the first zero, on the quickstart's models
    python examples/space/drive.py --image cat.jpg --eps 1 --screenshot page.png --vanilla ID --robust ID

Options that aren't its own are app.py's. Exit code 1: the page showed an error, or no predictions.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from page import first_digits
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait


APP = Path(__file__).parent / "app.py"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", help="File to upload, instead of a digit.")
    parser.add_argument("--digit", default="zero", help="Its name, zero to nine (default: %(default)s).")
    parser.add_argument("--eps", default="16", help="In 1/255 (default: %(default)s).")
    parser.add_argument("--screenshot", help="PNG file for a picture of the page.")
    parser.add_argument("--timeout", type=float, default=300, help="Seconds to wait (default: %(default)s).")
    settings, of_the_app = parser.parse_known_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(of_the_app, settings.timeout) as url,
        browse(folder) as browser,
    ):
        image = settings.image or save_digit(settings.digit, folder)
        browser.get(url)
        predictions = attack(browser, Path(image).resolve(), settings.eps, settings.timeout)
        if settings.screenshot:
            save_screenshot(browser, settings.screenshot)
    for model in ("vanilla", "robust"):
        print(f"{model}: clean {predictions[f'{model}-clean']}, attacked {predictions[f'{model}-attacked']}")


@contextmanager
def serve(arguments: list[str], timeout: float):
    """The app on a free port, as long as the block runs; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    app = subprocess.Popen([sys.executable, APP, *arguments], env={**os.environ, "GRADIO_SERVER_PORT": str(port)})
    try:
        deadline = time.monotonic() + timeout
        while not answers(url):
            if app.poll() is not None:
                sys.exit(1)  # it has said why
            if time.monotonic() > deadline:
                sys.exit(f"error: the page wasn't there after {timeout:g} s")
            time.sleep(0.5)
        yield url
    finally:
        app.terminate()
        app.wait()


def answers(url: str) -> bool:
    try:
        return urlopen(url, timeout=10).status == 200
    except (URLError, TimeoutError):
        return False


@contextmanager
def browse(folder: str):
    """A headless browser with a new profile in `folder`."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"):
        options.add_argument(f"--{argument}")
    for argument in ("disable-background-networking", "disable-component-update", "window-size=1280,1000"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={folder}/profile")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def attack(browser, image: Path, eps: str, timeout: float) -> dict[str, str]:
    """Upload the image, set eps, press the button; the four predictions by their elements' ids."""
    wait = WebDriverWait(browser, timeout)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#image input[type=file]"))[0].send_keys(str(image))
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#image img"))
    number = browser.find_element(By.CSS_SELECTOR, "#eps input[type=number]")
    number.send_keys(Keys.CONTROL, "a")
    number.send_keys(eps, Keys.TAB)
    browser.find_element(By.ID, "attack").click()
    ids = [f"{model}-{state}" for model in ("vanilla", "robust") for state in ("clean", "attacked")]
    try:
        wait.until(lambda page: all(prediction(page, element) for element in ids) or errors(page))
    except TimeoutException:
        sys.exit(f"error: the page showed no predictions within {timeout:g} s")
    if errors(browser):
        sys.exit(f"error: the page says: {errors(browser)}")
    return {element: prediction(browser, element) for element in ids}


def prediction(browser, element_id: str) -> str:
    """The most likely class and its probability, such as `"three 99.7 %"`; nothing before there is one."""
    meters = browser.find_elements(By.CSS_SELECTOR, f"#{element_id} meter")
    if not meters:
        return ""
    return f"{meters[0].get_attribute('aria-label')} {100 * float(meters[0].get_attribute('value')):.1f} %"


def errors(browser) -> str:
    return " ".join(message.text for message in browser.find_elements(By.CSS_SELECTOR, ".toast-message-text.error"))


def save_digit(name: str, folder: str) -> Path:
    path = Path(folder) / "digit.png"
    first_digits()[name].save(path)
    return path


def save_screenshot(browser, path: str) -> None:
    """The whole page, however long."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.set_window_size(1280, height + 200)
    time.sleep(1)
    browser.save_screenshot(path)


if __name__ == "__main__":
    main()
